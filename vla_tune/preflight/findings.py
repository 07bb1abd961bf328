"""What was found, and what becomes of it: a run stops, or its user is told once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vla_tune.console import warn
from vla_tune.errors import UserError


@dataclass(frozen=True)
class Finding:
    """One thing, named with its mend; `stops`: whether a run with it would be wrong."""

    text: str
    stops: bool


def stop(text: str) -> Finding:
    """What a run must not start with."""
    return Finding(text, stops=True)


def tell(text: str) -> Finding:
    """What its user should know."""
    return Finding(text, stops=False)


def settle(found: Iterable[Finding]) -> None:
    """Warn of what does not stop a run, then stop for all that does.

    Raises:
        UserError: one message with everything that stops.

    """
    every = list(dict.fromkeys(found))
    for one in every:
        if not one.stops:
            warn(one.text)
    if stops := [one.text for one in every if one.stops]:
        raise UserError("; also: ".join(stops))
