"""How sure a success rate is."""

from __future__ import annotations


def wilson(successes: int, episodes: int) -> dict[str, float]:
    """A success rate with its Wilson 95 % interval: `{value, low, high}`, in 0..1."""
    from scipy.stats import binomtest

    interval = binomtest(successes, episodes).proportion_ci(confidence_level=0.95, method="wilson")
    return {"value": successes / episodes, "low": float(interval.low), "high": float(interval.high)}
