"""A dataset's statistics: whether values can be scaled by them, and whether they are of these values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from vla_tune.data.statistics import constants
from vla_tune.preflight.findings import Finding, stop, tell
from vla_tune.preflight.tables import Tables

NEEDED = {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
"""By lerobot's mode of normalisation."""
SIGMA, SHARE = 5.0, 0.01
"""Of the values no more than this share may be further from the mean than so many standard deviations."""


def unusable(stats: dict[str, Any], key: str, width: int, mode: str, recompute: str) -> Iterator[Finding]:
    """What keeps the values of a vector from being scaled.

    Args:
        stats: of this vector, by name.
        key: its feature.
        width: how many numbers it has.
        mode: lerobot's normalisation.
        recompute: the command that mends it.

    """
    wrong = [text for name in NEEDED.get(mode, ()) if (text := _wrong(stats.get(name), name, width))]
    if wrong:
        yield stop(f"meta/stats.json: of '{key}', {', '.join(wrong)}; {recompute}")


def _wrong(values: Any, name: str, width: int) -> str:
    if values is None:
        return f"{name} is missing"
    try:
        numbers = np.asarray(values, np.float64).reshape(-1)
    except (TypeError, ValueError):
        return f"{name} is not numbers"
    if len(numbers) != width:
        return f"{name} has {len(numbers)} numbers instead of {width}"
    if not np.isfinite(numbers).all():
        return f"{name} has NaN, infinity or null"
    return f"{name} is negative" if name == "std" and (numbers < 0).any() else ""


def resting(tables: Tables, stats: dict[str, Any], key: str) -> Iterator[Finding]:
    """Numbers that never change, by the statistics and by the values."""
    if not {"mean", "std"} <= set(stats):
        return
    values = tables.numbers(key)
    still = constants(stats) & constants({"mean": values.mean(0), "std": values.std(0)})
    if still.any():
        named = ", ".join(f"'{key}'[{place}]" for place in np.flatnonzero(still).tolist())
        yield tell(f"{named} never changes; it is not scaled")


def foreign(tables: Tables, stats: dict[str, Any], key: str, recompute: str) -> Iterator[Finding]:
    """Statistics that are not those of the values."""
    if not {"mean", "std"} <= set(stats):
        return
    mean, std = (np.asarray(stats[name], np.float64).reshape(-1) for name in ("mean", "std"))
    beyond = np.abs(tables.numbers(key) - mean) > SIGMA * np.maximum(std, 1e-4 * np.maximum(np.abs(mean), 1e-2))
    shares = beyond.mean(0)
    worst = int(shares.argmax())
    if shares[worst] > SHARE:
        yield tell(
            f"{shares[worst]:.0%} of '{key}'[{worst}] is more than {SIGMA:g} standard deviations from the mean in meta/stats.json: the "
            f"statistics may be another robot's; {recompute}"
        )
