"""The bootstrap over clusters (Efron 1979; clusters: Davison and Hinkley 1997, section 3.8).

What is drawn again is the cluster: the picture that several questions are about, the episode that holds many actions. A paired
comparison gives every series the same `draws`. Draws are counts, so a resampled total is one product: `draws @ cluster_totals(...)`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

type Floats = npt.NDArray[np.float64]
type Counts = npt.NDArray[np.int64]
type Indices = npt.NDArray[np.intp]


def draws(clusters: int, resamples: int, rng: np.random.Generator) -> Counts:
    """How often each resample drew each cluster, `[resamples, clusters]`: with replacement, as many as there are."""
    return rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples)


def cluster_totals(cluster_of: Indices | Sequence[int], clusters: int, values: Floats | Sequence[float]) -> Floats:
    """The sum of the `[n]` values in each cluster, `[clusters]`; `cluster_of`: `[n]`, counted from 0."""
    return np.bincount(cluster_of, weights=values, minlength=clusters).astype(np.float64)


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Element by element; nan or infinite where a resample has nothing to divide by, which `intervals.percentile` leaves out."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return numerator / denominator


def mean_over_runs(values: Floats, rng: np.random.Generator) -> Floats:
    """The mean over runs drawn again in each resample, `[resamples]`, of `[resamples, runs]`: a second factor, crossed with clusters."""
    drawn = rng.integers(values.shape[1], size=values.shape)
    means: Floats = np.take_along_axis(values, drawn, axis=1).mean(1)
    return means


def means(scores: Floats, clusters: Sequence[str], ends: Floats, *, resamples: int, rng: np.random.Generator) -> Floats:
    """Resampled means of several series on the same samples, `[resamples, series]`, kept apart where all samples agree.

    To the samples come made-up ones, at the `ends` of what is possible (as Agresti and Min 2005 add to counts of pairs), so that
    an interval does not close where all samples agree. They draw it towards the middle: `intervals.percentile_around` mends that.

    Args:
        scores: `[series, n]`.
        clusters: `[n]`, the name of each sample's cluster.
        ends: `[series, made-up samples]`, each a cluster of its own.
        resamples: how many.
        rng: draws once.

    """
    numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    total = len(numbers) + ends.shape[1]
    cluster_of = np.array([*(numbers[name] for name in clusters), *range(len(numbers), total)])
    weights = draws(total, resamples, rng)[:, cluster_of]
    found: Floats = weights @ np.concatenate([scores, ends], axis=1).T / weights.sum(1, keepdims=True)
    return found
