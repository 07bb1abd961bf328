"""The bootstrap against scipy's, and against what a resample must be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vla_tune.stats import bootstrap
from vla_tune.stats.intervals import percentile

SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS, st.integers(1, 30))
def test_a_resample_draws_as_many_clusters_as_there_are(seed, clusters):
    drawn = bootstrap.draws(clusters, 20, np.random.default_rng(seed))
    assert drawn.shape == (20, clusters)
    assert (drawn.sum(1) == clusters).all()
    assert (drawn >= 0).all()


def test_the_interval_of_a_ratio_is_scipys():
    """Pairs of totals are drawn together: scipy's paired percentile bootstrap, from other random numbers."""
    rng = np.random.default_rng(0)
    before = rng.integers(1, 5, 80).astype(float)
    after = before * rng.uniform(0.3, 1.1, 80)
    drawn = bootstrap.draws(80, 20_000, rng)
    ours = percentile(bootstrap.ratio(drawn @ after, drawn @ before))
    theirs = stats.bootstrap(
        (after, before),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert (ours["low"], ours["high"]) == (pytest.approx(theirs.low, abs=0.03 * width), pytest.approx(theirs.high, abs=0.03 * width))


@given(SEEDS)
def test_cluster_totals_of_one_cluster_a_sample_are_the_samples(seed):
    rng = np.random.default_rng(seed)
    values, places = rng.normal(size=12), rng.permutation(12)
    assert np.array_equal(bootstrap.cluster_totals(places, 13, values), [*values[np.argsort(places)], 0.0])


def test_nothing_to_divide_by_is_not_finite_and_no_warning(recwarn):
    assert not np.isfinite(bootstrap.ratio(np.array([1.0, 0.0]), np.zeros(2))).any()
    assert not recwarn


@given(SEEDS, st.integers(1, 6))
def test_the_mean_over_runs_lies_between_the_runs(seed, runs):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(50, runs))
    means = bootstrap.mean_over_runs(values, rng)
    assert (means >= values.min(1) - 1e-12).all()
    assert (means <= values.max(1) + 1e-12).all()


def test_runs_add_their_own_spread():
    """Of runs that agree on every resample only the mean is left; of two that differ, the binomial's spread."""
    rng = np.random.default_rng(0)
    values = np.repeat([[0.0, 1.0]], 20_000, axis=0)
    assert np.std(bootstrap.mean_over_runs(values, rng)) == pytest.approx(0.5 / 2**0.5, rel=0.02)
    assert np.array_equal(bootstrap.mean_over_runs(np.full((5, 3), 0.25), rng), np.full(5, 0.25))


@given(SEEDS)
def test_means_draw_clusters_whole_and_all_series_together(seed):
    rng = np.random.default_rng(seed)
    scores = np.stack([np.repeat(rng.integers(0, 2, 6), 2), np.repeat(rng.integers(0, 2, 6), 2)]).astype(float)
    clusters = [str(number // 2) for number in range(12)]
    no_ends = np.zeros((2, 0))
    both = bootstrap.means(scores, clusters, no_ends, resamples=30, rng=np.random.default_rng(seed))
    whole = bootstrap.means(scores[:, ::2], clusters[::2], no_ends, resamples=30, rng=np.random.default_rng(seed))
    assert np.allclose(both, whole)  # two equal samples of a cluster are worth one
    alone = bootstrap.means(scores[1:], clusters, no_ends[1:], resamples=30, rng=np.random.default_rng(seed))
    assert np.allclose(both[:, 1], alone[:, 0])


def test_made_up_samples_keep_an_interval_open():
    scores, names = np.ones((1, 20)), [str(number) for number in range(20)]
    closed = bootstrap.means(scores, names, np.zeros((1, 0)), resamples=500, rng=np.random.default_rng(0))
    opened = bootstrap.means(scores, names, np.array([[0.0, 1.0]]), resamples=500, rng=np.random.default_rng(0))
    assert (closed == 1).all()
    assert 0.7 < percentile(opened[:, 0])["low"] < 1
