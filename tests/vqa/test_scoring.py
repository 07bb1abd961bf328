"""Scores, intervals and tests against cases worked by hand."""

import numpy as np
import pytest

from vla_tune.vqa.scoring import Scored, accuracy_by_type, blind_answers, exact_match, summarise


@pytest.mark.parametrize(
    ("prediction", "right"),
    [("red", 1), (" Red\n", 1), ("The answer is red", 0), ("red.", 0), ("re d", 0), ("", 0), ("crimson", 1)],
)
def test_only_white_space_and_case_are_forgiven(prediction, right):
    assert exact_match(prediction, ["red", "Crimson"]) == right


def scored(base, tuned, images=None, types=None):
    n = len(base)
    return Scored(images or [str(i) for i in range(n)], types or ["count"] * n, np.array(base, float), np.array(tuned, float))


def test_accuracies_and_retention_by_hand():
    report = summarise(scored([1, 1, 1, 0], [1, 0, 1, 1], types=["a", "a", "b", "b"]), resamples=200, seed=0)
    assert report["n"] == 4
    assert report["images"] == 4
    assert [report[name]["value"] for name in ("base_accuracy", "accuracy", "retention")] == [0.75, 0.75, 1.0]
    assert report["by_type"]["a"]["retention"]["value"] == 0.5
    assert report["by_type"]["b"]["retention"]["value"] == 2.0
    assert report["by_type"]["b"]["n"] == 2


def test_nothing_lost_has_an_interval_of_no_width():
    report = summarise(scored([1, 0] * 20, [1, 0] * 20), resamples=300, seed=0)
    assert report["retention"] == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_a_base_that_knows_nothing_has_no_retention():
    report = summarise(scored([0, 0, 0], [1, 0, 0]), resamples=50, seed=0)
    assert report["retention"] is None
    assert report["base_accuracy"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_the_bootstrap_is_over_images():
    """Three questions of one picture that share their score carry one picture's information, not three."""
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 2, 200).astype(float)
    single = summarise(scored(scores, scores), resamples=2000, seed=1)
    images = [str(i // 3) for i in range(600)]
    tripled = summarise(scored(np.repeat(scores, 3), np.repeat(scores, 3), images=images), resamples=2000, seed=1)
    assert tripled["images"] == 200
    wide = single["accuracy"]["high"] - single["accuracy"]["low"]
    assert tripled["accuracy"]["high"] - tripled["accuracy"]["low"] == pytest.approx(wide, abs=0.015)
    assert wide == pytest.approx(2 * 1.96 * (0.25 / 200) ** 0.5, abs=0.02)


def test_the_bootstrap_is_paired():
    """Resamples keep before and after together: where both move as one, retention is sharper than either accuracy."""
    rng = np.random.default_rng(0)
    base = (rng.random(300) < 0.6).astype(float)
    tuned = base.copy()
    tuned[np.flatnonzero(base)[:3]] = 0
    report = summarise(scored(base, tuned), resamples=1000, seed=0)
    assert report["retention"]["high"] - report["retention"]["low"] < 0.5 * (report["accuracy"]["high"] - report["accuracy"]["low"])


def test_the_seed_fixes_the_intervals():
    case = scored([1, 0, 1, 1, 0], [1, 1, 0, 1, 0])
    assert summarise(case, resamples=100, seed=3) == summarise(case, resamples=100, seed=3)
    assert summarise(case, resamples=100, seed=3) != summarise(case, resamples=100, seed=4)


def test_the_blind_guesser_by_hand():
    seen = [("colour", "what color is the cross?", [answer]) for answer in ("red", "red", "blue")]
    seen += [("colour", "what color is the square?", [answer]) for answer in ("blue", "blue", "green")]
    seen += [("count", "count the objects.", [answer]) for answer in ("2", "1")]
    asked = [
        ("colour", "what color is the cross?"),
        ("colour", "what color is the circle?"),  # not seen: the type's most frequent, blue
        ("count", "count the objects."),  # equally frequent: the first in the alphabet
        ("new", "what is it?"),  # a type not seen: the most frequent of all, blue
    ]
    assert blind_answers(seen, asked) == ["red", "blue", "1", "blue"]


def test_the_blind_guesser_counts_every_annotator():
    seen = [("q", "what is it?", ["cat", "dog", "dog"]), ("q", "what is it?", ["Dog", "cat", "cow"])]
    assert blind_answers(seen, [("q", "what is it?")]) == ["dog"]


def test_the_blind_guesser_of_a_multiple_choice():
    seen = [("q", "what eats grass?", ["B", "cow"]), ("q", "what eats grass?", ["C", "cow"]), ("q", "what barks?", ["B", "dog"])]
    asked = [("q", "what eats grass?"), ("q", "what eats grass?"), ("q", "what flies?")]
    choices = [["cow", "dog"], ["sheep", "dog"], ["bird", "frog"]]
    assert blind_answers(seen, asked, choices) == ["cow", "b", "b"]  # the option that was right; else the most frequent letter


def test_accuracy_by_type():
    assert accuracy_by_type(["b", "a", "b"], np.array([1.0, 0.0, 0.0])) == {"a": 0.0, "b": 0.5}
