"""A dataset's statistics as a policy's processors may scale by them."""

from __future__ import annotations

from typing import Any

import numpy as np

RESTING = 1e-4
"""A number that varies by less than this share of its size is constant: float32 rounds it to 6e-8, a sensor's noise is more."""
LEAST = 1e-6
"""Of a number around 0."""
LOW, HIGH = ("min", "q01", "q10"), ("max", "q99", "q90")


def constants(stats: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Which numbers of a vector never change, a mask `[d]`, by its `mean` and `std`."""
    mean, std = (np.asarray(stats[name], np.float64).reshape(-1) for name in ("mean", "std"))
    resting: np.ndarray[Any, Any] = std <= np.maximum(RESTING * np.abs(mean), LEAST)
    return resting


def scalable(stats: dict[str, dict[str, Any]], keys: tuple[str, ...] = ("observation.state", "action")) -> dict[str, dict[str, Any]]:
    """With constant numbers of these vectors left in their own unit: divided by what they vary, their rounding would be all that is learnt.

    What is left of them is their distance from their mean: standard deviation and half of the range become 1.
    """
    return {key: _left(one) if key in keys and {"mean", "std"} <= set(one) else one for key, one in stats.items()}


def _left(stats: dict[str, Any]) -> dict[str, Any]:
    resting = constants(stats)
    if not resting.any():
        return stats
    mean = np.asarray(stats["mean"], np.float64).reshape(-1)
    values = {"std": np.ones_like(mean), **dict.fromkeys(LOW, mean - 1), **dict.fromkeys(HIGH, mean + 1)}
    left = {}
    for name, own in stats.items():
        value = np.asarray(own)
        left[name] = np.where(resting, values[name], value).astype(value.dtype) if name in values else own
    return left
