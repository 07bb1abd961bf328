"""Scores of free-form answers, how much of the skill is left, and how sure that is."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_tune.stats import bootstrap
from vla_tune.stats.intervals import percentile

type Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """Scores of the same questions before and after, with what they are grouped by; all of one length.

    images: the picture each question is about; pictures, not questions, are what the bootstrap draws.
    """

    images: Sequence[str]
    types: Sequence[str]
    base: Floats
    tuned: Floats


def normalise(text: str) -> str:
    """Only surrounding white space and case are forgiven; an answer in another format is wrong."""
    return text.strip().lower()


def exact_match(prediction: str, answers: Iterable[str]) -> float:
    """1.0 where the normalised prediction is one of the normalised answers, else 0.0."""
    return float(normalise(prediction) in {normalise(answer) for answer in answers})


def summarise(scored: Scored, *, resamples: int, seed: int) -> dict[str, Any]:
    """The figures of `figures` over all questions, and under `by_type` for each type.

    All intervals come from the same resamples of the pictures.
    """
    images, index = np.unique(np.asarray(scored.images), return_inverse=True)
    drawn = bootstrap.draws(len(images), resamples, np.random.default_rng(seed))
    everything = np.ones(len(index), dtype=bool)
    types = np.asarray(scored.types)
    groups = {name: figures(index, drawn, scored, types == name) for name in sorted(set(scored.types))}
    return {**figures(index, drawn, scored, everything), "images": len(images), "by_type": groups}


def figures(index: bootstrap.Indices, drawn: bootstrap.Counts, scored: Scored, chosen: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """n, and base_accuracy, accuracy and retention of the chosen questions as `{value, low, high}`, a 95 % interval.

    Args:
        index: the picture of each question, counted from 0.
        drawn: `[resamples, pictures]`, how often each resample drew each picture.

    Returns:
        The figures by name; retention is None where the base answered nothing right.

    """
    counted = (np.ones(len(index)), scored.base, scored.tuned)
    sums = np.stack([bootstrap.cluster_totals(index, drawn.shape[1], values * chosen) for values in counted])
    n, base, tuned = sums.sum(1)
    totals = drawn @ sums.T
    resampled = {
        "base_accuracy": bootstrap.ratio(totals[:, 1], totals[:, 0]),
        "accuracy": bootstrap.ratio(totals[:, 2], totals[:, 0]),
        "retention": bootstrap.ratio(totals[:, 2], totals[:, 1]),
    }
    points = {"base_accuracy": base / n, "accuracy": tuned / n, "retention": tuned / base if base else None}
    result: dict[str, Any] = {"n": int(n)}
    for name, point in points.items():
        result[name] = None if point is None else {"value": float(point), **percentile(resampled[name])}
    return result


def blind_answers(
    seen: Iterable[tuple[str, str, Sequence[str]]], asked: Iterable[tuple[str, str]], choices: Sequence[Sequence[str]] = ()
) -> list[str]:
    """What the best guesser answers who knows the questions' texts but sees no picture.

    The most frequent answer to the same text among the questions seen, else that of the type, else of all; the first in the
    alphabet of equally frequent ones. Of a multiple choice, the option that was right most often for the same text, else the most
    frequent letter.

    Args:
        seen: type, text and right answers (every annotator's) of other questions of the same kind.
        asked: type and text of each question to answer.
        choices: the options of each question to answer, where there are any.

    """
    by_text: dict[str, Counter[str]] = {}
    by_type: dict[str, Counter[str]] = {}
    everything: Counter[str] = Counter()
    for kind, text, answers in seen:
        given = [normalise(answer) for answer in answers]
        for counts in (by_text.setdefault(text, Counter()), by_type.setdefault(kind, Counter()), everything):
            counts.update(given)
    return [
        _guess(by_text.get(text, Counter()), by_type.get(kind) or everything, choices[place] if choices else ())
        for place, (kind, text) in enumerate(asked)
    ]


def accuracy_by_type(types: Sequence[str], scores: Floats) -> dict[str, float]:
    """Mean score of each type, types in alphabetical order."""
    kinds = np.asarray(types)
    return {name: float(scores[kinds == name].mean()) for name in sorted(set(types))}


def _guess(same: Counter[str], alike: Counter[str], options: Sequence[str]) -> str:
    if options:
        same = _among(same, {normalise(option) for option in options})
        alike = _among(alike, set(string.ascii_lowercase[: len(options)])) or alike
    return most_frequent(same or alike)[0]


def _among(counts: Counter[str], names: set[str]) -> Counter[str]:
    return Counter({name: count for name, count in counts.items() if name in names})


def most_frequent(counts: Mapping[str, int]) -> list[str]:
    """All answers, the most frequent first; equally frequent ones by the alphabet."""
    return sorted(counts, key=lambda answer: (-counts[answer], answer))
