"""Fine-tuning methods, one a file; `make_method` is how a training loop gets one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vla_tune.errors import UserError, nearest
from vla_tune.methods.options import STREAM_METHODS, TASK_METHODS, MethodConfig
from vla_tune.methods.registry import class_named

if TYPE_CHECKING:
    from lerobot.policies.pretrained import PreTrainedPolicy

    from vla_tune.anchors.artifact import Anchor, load_anchor
    from vla_tune.methods.base import Method
    from vla_tune.methods.continual import Strategy
    from vla_tune.vqa.batches import Memory

__all__ = ["load_anchor", "make_method"]


def __getattr__(name: str) -> Any:
    """`load_anchor`, imported when asked for: the configuration reads the methods' options from here, without torch."""
    if name == "load_anchor":
        from vla_tune.anchors.artifact import load_anchor

        return load_anchor
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def make_method(
    name: str,
    policy: PreTrainedPolicy,
    *,
    anchor: Anchor | None = None,
    settings: MethodConfig | None = None,
    memory: Memory | None = None,
) -> Method:
    """Prepare a policy for a method, in place.

    Args:
        name: one of `vla_tune.config.METHODS`.
        policy: a stock lerobot policy with an adapter.
        anchor: from `load_anchor`; checked against the policy's VLM.
        settings: the method's options; default: those of `MethodConfig`.
        memory: VQA questions with answers, for the methods that go on reading them.

    Raises:
        UserError: unknown method, no anchor where one is needed, an anchor of another backbone.

    """
    from vla_tune.anchors.artifact import check_compatible
    from vla_tune.policies import adapt
    from vla_tune.policies.weights import weights_digest

    kind = method_class(name)
    adapter = adapt(policy)
    if anchor is not None:
        backbone = weights_digest(adapter.vlm.state_dict())
        check_compatible(anchor, layers=len(adapter.layers()), width=adapter.width, backbone=backbone)
    return kind(policy, settings or MethodConfig(name=name), anchor, memory)


def method_class(name: str) -> type[Method]:
    """The class of a method's name.

    Raises:
        UserError: unknown method.

    """
    from vla_tune.methods.base import Method

    if name not in TASK_METHODS:
        raise UserError(f"method.name={name}: unknown method; {nearest(name, list(TASK_METHODS))}")
    return class_named("vla_tune.methods", name, Method)  # type: ignore[type-abstract]


STREAM_FILES = {"full": "sequential", "lora": "sequential_lora"}
"""Strategies whose file is not called by their name."""


def strategy_class(name: str) -> type[Strategy]:
    """The class of a strategy's name.

    Raises:
        UserError: unknown strategy.

    """
    from vla_tune.methods.continual import Strategy

    if name not in STREAM_METHODS:
        raise UserError(
            f"method.name={name}: a stream is learnt by one of {', '.join(STREAM_METHODS)}; {nearest(name, list(STREAM_METHODS))}"
        )
    return class_named("vla_tune.methods", name, Strategy, STREAM_FILES.get(name, name))  # type: ignore[type-abstract]
