"""Plain fine-tuning: what lerobot does with a trainable VLM, and what forgets."""

from __future__ import annotations

from typing import ClassVar

from vla_tune.methods.base import Method


class Full(Method):
    """The task gradient as it is. lerobot's own freezing (last block, final norm, head) stays."""

    name: ClassVar[str] = "full"

    def prepare(self) -> None:
        self.require_trainable_vlm()
