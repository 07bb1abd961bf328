"""95 % intervals of rates and of bootstrap resamples; every one is `low` and `high`, beside `value` where it is known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

type Floats = npt.NDArray[np.float64]
LEVEL = 0.95


def wilson(successes: int, trials: int) -> dict[str, float]:
    """A rate with its Wilson score interval (Wilson 1927): `{value, low, high}`, in 0..1."""
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(confidence_level=LEVEL, method="wilson")
    return {"value": successes / trials, "low": float(interval.low), "high": float(interval.high)}


def mean_rate(rates: list[dict[str, float]]) -> dict[str, float]:
    """The mean of independent rates with its interval, from theirs: `{value, low, high}`.

    The distances of the ends add up in squares (Zou and Donner 2008: recovery of variance estimates).
    """
    value = sum(rate["value"] for rate in rates) / len(rates)
    below, above = (sum((rate["value"] - rate[end]) ** 2 for rate in rates) ** 0.5 / len(rates) for end in ("low", "high"))
    return {"value": value, "low": max(0.0, value - below), "high": min(1.0, value + above)}


def percentile(resampled: Floats) -> dict[str, float | None]:
    """The percentile interval of `[resamples]` values (Efron 1979), without those that had nothing to divide by; None where all had."""
    finite = resampled[np.isfinite(resampled)]
    if not len(finite):
        return {"low": None, "high": None}
    low, high = _central(finite)
    return {"low": low, "high": high}


def percentile_around(value: float, resampled: Floats) -> dict[str, float | None]:
    """An estimate with the percentile interval of its `[resamples]` finite values, widened where need be to hold the estimate."""
    low, high = _central(resampled)
    return {"value": value, "low": min(low, value), "high": max(high, value)}


def _central(values: Floats) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
