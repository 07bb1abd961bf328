"""The benchmarks' scorers against cases worked by hand, and what must hold of any answer."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from vla_tune.data.manifests import METRICS
from vla_tune.vqa.scorers import (
    CONTRACTIONS,
    SCORERS,
    choice_match,
    evalai_normalise,
    said,
    scores,
    vqa_accuracy,
    yes_no_figures,
    yes_no_match,
)

PLAIN = st.lists(
    st.sampled_from(["cat", "a", "the", "three", "none", "10", "3.5", "t-shirt", "n/a", "(left)", "yes.", "red,", "?", "1,000"])
)


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("Two", "2"),  # number words
        ("none", "0"),
        ("the cat and a dog", "cat and dog"),  # articles
        ("An apple", "apple"),
        ("dont know", "don't know"),  # contractions
        ("couldnt've", "couldn't've"),
        ("the dog's", "dog 's"),  # a genitive is set apart
        ("yes.", "yes"),  # a point stays before a digit alone
        ("3.5", "3.5"),
        ("U.S.A.", "usa"),
        ("t-shirt", "t shirt"),  # a mark between letters becomes a space,
        ("red - blue", "red blue"),  # and goes where there is a space beside it,
        ("t-shirt - red", "tshirt red"),  # everywhere in the answer then
        ("1,000", "1000"),
        ("is it red?", "is it red"),
        (" Red\n", "red"),
        ("red\nblue", "red blue"),
        ("", ""),
    ],
)
def test_the_challenges_normalisation(answer, normal):
    assert evalai_normalise(answer) == normal


@given(PLAIN.map(" ".join))
def test_what_is_normalised_stays_as_it_is(answer):
    """Of words without apostrophes: the challenge sets a genitive's s apart, and would do so with a contraction that it has just made."""
    once = evalai_normalise(answer)
    assert evalai_normalise(once) == once


def test_every_contraction_is_spelt_with_its_apostrophes():
    assert len(CONTRACTIONS) == 114
    assert CONTRACTIONS["aint"] == "ain't"
    assert CONTRACTIONS["yall'd've"] == CONTRACTIONS["y'alld've"] == CONTRACTIONS["y'all'dve"] == "y'all'd've"


@pytest.mark.parametrize(
    ("matches", "score"),
    [
        (0, 0),
        (1, 0.3),  # the nine sets that hold it: 1/3 each; the set without: 0; 9/30
        (2, 0.6),  # eight sets with two: 2/3 each; two with one: 1/3 each; (16 + 2)/30
        (3, 0.9),  # seven sets with three: 1; three with two: 2/3; 7/10 + 2/10
        (4, 1),  # three are left in every set
        (10, 1),
    ],
)
def test_soft_accuracy_leaves_one_annotator_out(matches, score):
    answers = ["two"] * matches + ["a cow"] * (10 - matches)
    assert vqa_accuracy("2", answers) == pytest.approx(score)


def test_soft_accuracy_of_three_annotators():
    """Two agree: left out one of them, one of two matches, 1/3; left out the third, both do, 2/3. (1/3 + 1/3 + 2/3) / 3 = 4/9."""
    assert vqa_accuracy("red", ["Red", "red.", "blue"]) == pytest.approx(4 / 9)


@given(st.text(max_size=12), st.integers(4, 12))
def test_what_all_annotators_say_is_right(answer, annotators):
    assert vqa_accuracy(answer, [answer] * annotators) == 1


@given(PLAIN.map(" ".join), st.lists(PLAIN.map(" ".join), min_size=2, max_size=10), st.randoms())
def test_soft_accuracy_is_a_share_and_knows_no_order(prediction, answers, random):
    shuffled = answers.copy()
    random.shuffle(shuffled)
    score = vqa_accuracy(prediction, answers)
    assert 0 <= score <= 1
    assert vqa_accuracy(prediction, shuffled) == pytest.approx(score)


@pytest.mark.parametrize("prediction", ["B", "b", " B ", "B.", "(B)", "(b", "B)", "B: a dog", "B, the dog", "B) cat", "a dog", "A dog."])
def test_an_option_is_named_by_its_letter_or_its_text(prediction):
    assert choice_match(prediction, ["B", "a dog"], ["cat", "a dog", "cow"]) == 1


@pytest.mark.parametrize("prediction", ["A", "C.", "cat", "dog", "b dog", "", "the answer is B", "D", "BC"])
def test_anything_else_is_wrong(prediction):
    assert choice_match(prediction, ["B", "a dog"], ["cat", "a dog", "cow"]) == 0


def test_a_letter_beyond_the_options_is_text():
    """Options that are letters themselves, as in a diagram's labels: A to C name an option, E can only be a text."""
    options = ["C", "E", "A"]
    assert choice_match("E", ["B", "E"], options) == 1
    assert choice_match("B", ["B", "E"], options) == 1
    assert choice_match("A", ["C", "A"], options) == 0


def test_without_options_the_answer_is_taken_at_its_word():
    assert [choice_match(given, ["B"]) for given in ("B", "b.", "(B) a dog", "A")] == [1, 1, 1, 0]
    assert [choice_match(given, ["3"]) for given in ("3", "3.", "three")] == [1, 1, 0]
    assert [choice_match(given, ["Yes"]) for given in ("yes", "Yes.", "no")] == [1, 1, 0]


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("Yes", "yes"),
        ("yes, there is. No cat.", "yes"),
        ("No", "no"),
        ("There is not", "no"),
        ("yes and no", "no"),
        ("a dog", None),
        ("", None),
    ],
)
def test_what_was_said(prediction, answer):
    assert said(prediction) == answer
    assert yes_no_match(prediction, ["Yes"]) == (answer == "yes")


def test_popes_figures_by_hand():
    """Said yes three times, twice rightly; yes was right four times: precision 2/3, recall 2/4, F1 4/7; 3 of 6 right."""
    given_, right = ["yes", "Yes.", "yes", "no", "no", "dunno"], ["yes", "yes", "no", "yes", "no", "yes"]
    figures = yes_no_figures(given_, [[answer] for answer in right])
    expected = {"accuracy": 3 / 6, "precision": 2 / 3, "recall": 2 / 4, "f1": 4 / 7, "yes_ratio": 3 / 6}
    assert figures == pytest.approx(expected)
    precision, recall = figures["precision"], figures["recall"]
    assert figures["f1"] == pytest.approx(2 * precision * recall / (precision + recall))


def test_popes_figures_where_nothing_was_claimed():
    assert yes_no_figures(["no"], [["no"]]) == {"accuracy": 1, "precision": None, "recall": None, "f1": None, "yes_ratio": 0}


def test_a_set_is_scored_by_the_manifests_metric():
    rows = {"answers": [["B", "two"], ["A", "red"]], "choices": [["one", "two"], ["red", "blue"]]}
    assert scores("choice", ["two", "(b)"], Dataset.from_dict(rows)).tolist() == [1, 0]
    assert scores("exact", ["two", "b"], Dataset.from_dict({"answers": [["Two"], ["A"]]})).tolist() == [1, 0]
    assert scores("vqa", ["two"], Dataset.from_dict({"answers": [["2"] * 10]})).dtype == np.float64
    assert set(SCORERS) == set(METRICS)


WORDS = [
    *CONTRACTIONS,
    *CONTRACTIONS.values(),
    "two",
    "none",
    "a",
    "the",
    "an",
    "Red",
    "U.S.A.",
    "3.5",
    "1,000",
    "t-shirt",
    "-",
    "dog's",
    "(left)",
    "?",
]


def lmms_evals_scorer():
    """lmms-eval's file for OK-VQA and TextVQA, where it is installed; its package would import much that it needs for other things."""
    package = importlib.util.find_spec("lmms_eval")
    if package is None:
        pytest.skip("lmms-eval is not installed (pip install --no-deps lmms-eval)")
    file = Path(package.submodule_search_locations[0]) / "tasks" / "_task_utils" / "vqa_eval_metric.py"
    spec = importlib.util.spec_from_file_location("vqa_eval_metric", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EvalAIAnswerProcessor()


def test_answers_are_normalised_as_lmms_eval_does():
    theirs, rng = lmms_evals_scorer(), np.random.default_rng(0)
    for _ in range(20_000):
        answer = " ".join(rng.choice(WORDS, rng.integers(0, 6)))
        assert evalai_normalise(answer) == theirs(answer)
