"""Training the action expert alone: no task gradient reaches the VLM (the papers' stop-gradient baseline)."""

from __future__ import annotations

from typing import ClassVar

from vla_tune.methods.base import Method


class Frozen(Method):
    """The VLM does not move, so nothing is forgotten; the expert must do with the features as they are."""

    name: ClassVar[str] = "frozen"

    def prepare(self) -> None:
        self.freeze("vlm")
