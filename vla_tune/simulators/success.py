"""How sure a success rate is."""

from __future__ import annotations


def wilson(successes: int, episodes: int) -> dict[str, float]:
    """A success rate with its Wilson 95 % interval: `{value, low, high}`, in 0..1."""
    from scipy.stats import binomtest

    interval = binomtest(successes, episodes).proportion_ci(confidence_level=0.95, method="wilson")
    return {"value": successes / episodes, "low": float(interval.low), "high": float(interval.high)}


def mean_rate(rates: list[dict[str, float]]) -> dict[str, float]:
    """The mean of independent success rates with its 95 % interval, from theirs: `{value, low, high}`.

    The distances of the ends add up in squares (Zou and Donner 2008: recovery of variance estimates).
    """
    value = sum(rate["value"] for rate in rates) / len(rates)
    below, above = (sum((rate["value"] - rate[end]) ** 2 for rate in rates) ** 0.5 / len(rates) for end in ("low", "high"))
    return {"value": value, "low": max(0.0, value - below), "high": min(1.0, value + above)}
