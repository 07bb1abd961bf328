"""Whether all steps so far had a loss and a gradient that are numbers, noted without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor


class Finite:
    """Remembers the first step whose loss or gradient norm is no number."""

    def __init__(self) -> None:
        self._first: Tensor | None = None

    def note(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """See a step's figures."""
        now = torch.stack([torch.full_like(loss, step, dtype=torch.float64), loss.double(), norm.double()])
        if self._first is None:
            self._first = now
        else:  # the last step stands here until one is no number, which then stays
            self._first = torch.where(self._first.isfinite().all(), now, self._first)

    def check(self) -> None:
        """Wait for the device, and stop where a step was no number.

        Raises:
            FloatingPointError: it names the step, its loss and its gradient norm.

        """
        if self._first is None:
            return
        step, loss, norm = self._first.tolist()
        if not (abs(loss) < float("inf") and abs(norm) < float("inf")):
            raise FloatingPointError(f"step {int(step)}: loss {loss}, gradient norm {norm}")
