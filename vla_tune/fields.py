"""A field of a configuration's dataclass: its default, with the values that it takes and what it means.

The bounds stand with the field, in its metadata. OmegaConf reads the dataclass as any other.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from typing import Any

KEY = "option"
"""Under which a field's metadata holds its `Option`."""


@dataclass(frozen=True)
class Option:
    """What a field means and which values it takes; in a list, each item has to keep to it.

    Args:
        help: what the value does or is.
        at_least, above, at_most, below: bounds of a number. A float without an upper one must still be finite.
        length: of a list.
        choices: the strings that it may be.
        needs: dotted keys of settings without which this one does nothing.

    """

    help: str
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    length: int | None = None
    choices: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    def takes(self, value: Any) -> bool:
        """Whether the value, or every item of a list, is within the bounds; None always is: the type says where it may stand."""
        if isinstance(value, list):
            return self.length in (None, len(value)) and all(self.takes(item) for item in value)
        if value is None:
            return True
        if self.choices:
            return value in self.choices
        return not self.bounded or self._within(value)

    @property
    def bounded(self) -> bool:
        """Whether there is a number that it must not leave."""
        return any(bound is not None for bound in (self.at_least, self.above, self.at_most, self.below))

    def described(self, *, of_floats: bool) -> str:
        """What a value must be, as in `train.steps=0: must be at least 1`; empty where anything of its type will do."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        named = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        bounds = " and ".join(f"{word} {bound}" for word, bound in named.items() if bound is not None)
        if self.length:
            return f"{self.length} numbers, each {bounds}"
        if of_floats and bounds and self.at_most is self.below is None:
            return f"a finite number{'' if self.at_least is None else ','} {bounds}"
        return bounds

    def _within(self, number: float) -> bool:
        return (
            math.isfinite(number)
            and (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
        )


def option[T](
    default: T,
    *,
    help: str,  # noqa: A002 - as in argparse
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    length: int | None = None,
    choices: tuple[str, ...] = (),
    needs: tuple[str, ...] = (),
) -> T:
    """A dataclass field with this default; the other arguments are those of `Option`."""
    metadata = {KEY: Option(help, at_least, above, at_most, below, length, choices, needs)}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def required(*, help: str) -> Any:  # noqa: A002 - as in argparse
    """A dataclass field that must be given."""
    return dataclasses.field(metadata={KEY: Option(help)})


def option_of_field(field: dataclasses.Field[Any]) -> Option | None:
    """What `option` was told of a field; None for a section of the schema."""
    found: Option | None = field.metadata.get(KEY)
    return found
