"""Intervals against scipy's and against their own formulas."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_tune.stats.intervals import mean_rate, percentile, percentile_around, wilson


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (7, 10), (81, 263)])
def test_wilson_against_its_formula(successes, trials):
    z, p = 1.959963984540054, successes / trials
    centre = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * (p * (1 - p) / trials + z**2 / (4 * trials**2)) ** 0.5
    assert wilson(successes, trials) == pytest.approx({"value": p, "low": centre - half, "high": centre + half}, abs=1e-9)


@given(st.integers(1, 200).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials))))
def test_wilson_holds_its_rate_and_mirrors(case):
    successes, trials = case
    one, other = wilson(successes, trials), wilson(trials - successes, trials)
    assert 0 <= one["low"] <= one["value"] <= one["high"] <= 1
    assert one["low"] == pytest.approx(1 - other["high"], abs=1e-12)


def test_the_mean_of_rates_and_its_interval():
    assert mean_rate([wilson(3, 10)]) == pytest.approx(wilson(3, 10))
    one, other = wilson(90, 100), wilson(50, 100)
    mean = mean_rate([one, other])
    assert mean["value"] == pytest.approx(0.7)
    assert 0.7 - mean["low"] == pytest.approx(np.hypot(0.9 - one["low"], 0.5 - other["low"]) / 2)
    rng = np.random.default_rng(0)  # it holds the truth about as often as it says
    of = [wilson(successes, 100) for successes in range(101)]
    drawn = zip(rng.binomial(100, 0.9, 2000), rng.binomial(100, 0.5, 2000), strict=True)
    held = [mean["low"] <= 0.7 <= mean["high"] for mean in (mean_rate([of[a], of[b]]) for a, b in drawn)]
    assert 0.93 < np.mean(held) < 0.97


def test_a_percentile_interval_leaves_out_what_cannot_be_divided():
    assert percentile(np.array([1.0, np.nan, 3.0, np.inf])) == {"low": pytest.approx(1.05), "high": pytest.approx(2.95)}
    assert percentile(np.array([np.nan])) == {"low": None, "high": None}


@given(st.lists(st.floats(-1, 1), min_size=1), st.floats(-1, 1))
def test_an_interval_around_a_value_holds_it_and_the_percentiles(values, value):
    inner, found = percentile(np.array(values)), percentile_around(value, np.array(values))
    assert found["low"] == min(inner["low"], value)
    assert found["high"] == max(inner["high"], value)
