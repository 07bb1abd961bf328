"""Continual-learning strategies, one a file: what is added, trained and frozen for each task of a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vla_tune.config import STRATEGIES
from vla_tune.errors import UserError, nearest
from vla_tune.registry import class_named

if TYPE_CHECKING:
    from vla_tune.continual.base import Strategy


def strategy_class(name: str) -> type[Strategy]:
    """The class of a strategy's name.

    Raises:
        UserError: unknown strategy.

    """
    from vla_tune.continual.base import Strategy

    if name not in STRATEGIES:
        raise UserError(f"method.name={name}: a stream is learnt by one of {', '.join(STRATEGIES)}; {nearest(name, list(STRATEGIES))}")
    return class_named("vla_tune.continual", name, Strategy)  # type: ignore[type-abstract]
