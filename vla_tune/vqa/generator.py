"""What a set of questions is made from: scenes that can be drawn and asked about."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Question:
    """A question and its only right answer; `type` groups the results."""

    type: str
    text: str
    answer: str


class Drawable(Protocol):
    """A scene of any generator."""

    def draw(self) -> Image:
        """Its picture."""


class Placed(Protocol):
    """A thing in a picture: its centre in pixels, the origin at the top left."""

    @property
    def x(self) -> float:
        """From the left."""

    @property
    def y(self) -> float:
        """From the top."""


@dataclass(frozen=True)
class Generator[S: Drawable]:
    """What questions are made from.

    sample: the scene of a seed, a split and a number. ask: a question of a type about it, where it allows one.
    answers: by question type, those that are evened out; scenes for others (four alike) are too rare, and are not asked about.
    scenes: how many of a split it may take to fill it; training keeps away from their pictures.
    version: of the pictures and questions that these make; a new one leaves the sets in the cache aside.
    """

    sample: Callable[[int, str, int], S]
    ask: Callable[[S, str, np.random.Generator], Question | None]
    answers: Mapping[str, Sequence[str]]
    scenes: int
    version: int
