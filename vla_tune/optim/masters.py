"""Float32 copies of weights in a lower precision, for an optimizer whose steps those weights would round away."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LOWER = (torch.bfloat16, torch.float16)
KEY = "master"
"""By this name a copy lies in the optimizer's state of its parameter, so it is saved and loaded with the moments."""


class Masters:
    """Lets an optimizer's step, and its hooks that are registered later, see such parameters and their gradients in float32.

    Inside the step a parameter's `data` is its float32 master. After it, the parameter is the master rounded, in its own storage,
    and its gradient is gone. Parameters in float32 are left alone. Copies are made in the first step: until then DDP may still
    bring the parameters of several processes to the same values.

    Args:
        optimizer: keeps no state yet.

    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._rounded: dict[nn.Parameter, Tensor] = {}
        """The parameters' own storage, while their masters are in their place."""
        self.parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad and p.dtype in LOWER]
        if self.parameters:
            optimizer.register_step_pre_hook(self._before_step)
            # Loading casts state to its parameter's type.
            optimizer.register_load_state_dict_pre_hook(lambda *_: self._put(self.parameters))
            optimizer.register_load_state_dict_post_hook(lambda *_: self._take())

    def _before_step(self, *_: Any) -> None:
        stepping = [p for p in self.parameters if p.grad is not None or p in self._optimizer.state]
        gradients = [None if p.grad is None else p.grad.float() for p in stepping]
        for parameter in stepping:
            parameter.grad = None  # its type could not differ from the parameter's
        self._put(stepping)
        for parameter, gradient in zip(stepping, gradients, strict=True):
            parameter.grad = gradient

    def after_step(self) -> None:
        """Round the masters into their parameters; to be called when nothing more changes them."""
        for parameter, rounded in self._rounded.items():
            if parameter in self._optimizer.state:
                self._optimizer.state[parameter][KEY] = parameter.data
            rounded.copy_(parameter.data)
            parameter.grad = None
        self._take()

    def _put(self, parameters: list[nn.Parameter]) -> None:
        for parameter in parameters:
            self._rounded[parameter] = parameter.data
            state = self._optimizer.state.get(parameter, {})
            parameter.data = state[KEY] if KEY in state else parameter.data.float()

    def _take(self) -> None:
        for parameter, rounded in self._rounded.items():
            parameter.data = rounded
        self._rounded.clear()
