"""Two that take turns, and the ratio of their times."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

SPREAD = (0.1, 0.9)
"""The quantiles of the rounds' ratios that are `low` and `high`."""

Turn = Callable[[], Any]
Row = dict[str, Any]
"""`name, ratio, low, high`."""


@dataclass(frozen=True)
class Rounds:
    """Seconds of two contestants, round by round."""

    name: str
    ours: list[float]
    theirs: list[float]

    @property
    def row(self) -> Row:
        """The median of the rounds' ratios, ours to theirs, and their 10th and 90th percentile; below 1 ours is faster."""
        ratios = [one / other for one, other in zip(self.ours, self.theirs, strict=True)]
        low, high = np.quantile(ratios, SPREAD)
        return {"name": self.name, "ratio": statistics.median(ratios), "low": float(low), "high": float(high)}

    @property
    def seconds(self) -> tuple[float, float]:
        """The medians, ours and theirs."""
        return statistics.median(self.ours), statistics.median(self.theirs)


def alternate(name: str, ours: Turn, theirs: Turn, rounds: int, *, warm_up: bool = True, units: tuple[float, float] = (1, 1)) -> Rounds:
    """Let two take turns, the first of a round second in the next; the first turn of each may warm up and not count.

    Args:
        name: of the row.
        ours, theirs: one turn each.
        rounds: that count.
        warm_up: whether each takes a turn before.
        units: how many units (steps, samples) a turn of each has; seconds are told of one.

    """
    turns, times = (ours, theirs), ([], [])
    for number in range(-int(warm_up), rounds):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            seconds = timed(turns[which]) / units[which]
            if number >= 0:
                times[which].append(seconds)
    return Rounds(name, *times)


def timed(turn: Turn) -> float:
    """Seconds of a turn, with what it left the device to do."""
    gc.collect()
    settle()
    began = time.perf_counter()
    turn()
    settle()
    return time.perf_counter() - began


def settle() -> None:
    """Wait for the device, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
