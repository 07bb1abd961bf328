"""Models without values: their tensors have a shape, a type and a device, and take no memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter

aten = torch.ops.aten
_INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)


@contextmanager
def without_values() -> Iterator[None]:
    """Whatever torch makes in here has no values; what was made before keeps its own.

    Where a value is asked for, as in `if loss.isfinite()`, it is a plausible one: 1, True for a check or a comparison of whole
    tensors, False for another truth. A mask is taken to select everything. So a forward pass, a backward pass and an optimizer's step
    go their usual way, and what they hold can be counted (`vla_tune.anchors.memory.Footprint`).
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributions import Distribution

    checks = Distribution._validate_args  # noqa: SLF001
    Distribution.set_default_validate_args(value=False)
    try:
        copying = patch.object(Tensor, "__deepcopy__", _copied)
        with patch.object(nn.Module, "_apply", _converted), copying, FakeTensorMode(allow_non_fake_inputs=True), _Plausible():
            yield
    finally:
        Distribution.set_default_validate_args(checks)


def with_values() -> AbstractContextManager[None]:
    """Inside `without_values`: in here tensors have values again."""
    context: AbstractContextManager[None] = _disable_current_modes()
    return context


class _Plausible(TorchDispatchMode):
    """Answers what depends on values that are not there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch._subclasses.fake_tensor import FakeTensor

        kwargs = kwargs or {}
        given = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
        if (given and not any(isinstance(value, FakeTensor) for value in given)) or func is aten.arange.start_step:
            with with_values():  # an anchor's eigenvalues, say: how many count shapes what is made of them
                return func(*args, **kwargs)
        if func in _ANSWERS:
            return _ANSWERS[func](*args)
        if func in _INDEXED:
            args = (args[0], [place for index in args[1] for place in _places(index)], *args[2:])
        return func(*args, **kwargs)


def _number(tensor: Tensor) -> float | bool:
    return tensor.dtype != torch.bool and (1.0 if tensor.is_floating_point() else 1)


def _passed(_: Tensor) -> Tensor:
    """What a check of torch's own gives."""
    with with_values():
        return torch.ones((), dtype=torch.bool)


_ANSWERS: dict[Any, Callable[..., Any]] = {
    aten._local_scalar_dense.default: _number,  # noqa: SLF001
    aten._is_all_true.default: _passed,  # noqa: SLF001
    aten.equal.default: lambda *_: True,
    aten.nonzero.default: lambda mask: mask.new_empty(mask.numel(), mask.dim(), dtype=torch.long),
    aten.masked_select.default: lambda tensor, _: tensor.new_empty(tensor.numel()),
}


def _places(index: Tensor | None) -> list[Tensor | None]:
    """What a mask becomes when it is an index: the places that it selects, along each of its dimensions."""
    if index is None or index.dtype not in (torch.bool, torch.uint8):
        return [index]
    return [index.new_empty(index.numel(), dtype=torch.long) for _ in range(index.dim())]


def _copied(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """`copy.deepcopy`, which looks for the bytes."""
    if id(tensor) not in memo:
        made = tensor.detach().clone()
        memo[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made
    copied: Tensor = memo[id(tensor)]
    return copied


def _converted(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply`, which cannot put one tensor without values in another's place; what was shared stays so."""
    known: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
    for part in module.modules() if recurse else [module]:
        for name, parameter in part._parameters.items():  # noqa: SLF001
            if parameter is not None and (made := function(parameter.detach())).dtype != parameter.dtype:
                pair = known.setdefault(id(parameter), (parameter, nn.Parameter(made, parameter.requires_grad)))
                part._parameters[name] = pair[1]  # noqa: SLF001
        for name, buffer in part._buffers.items():  # noqa: SLF001
            if buffer is not None:
                part._buffers[name] = function(buffer)  # noqa: SLF001
    return module
