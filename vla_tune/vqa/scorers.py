"""What an answer scores by the rules of the benchmarks that are in use.

The soft accuracy of VQA v2 and its normalisation follow the VQA challenge's evaluation on EvalAI, multiple choice and POPE's
figures their papers. docs/benchmarks.md says where readings differ.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vla_tune.vqa.scoring import Floats, exact_match, normalise

if TYPE_CHECKING:
    from datasets import Dataset

type Scorer = Callable[[str, Sequence[str], Sequence[str]], float]

LETTERS = string.ascii_uppercase
"""What the options of a multiple choice are called."""
ARTICLES = frozenset(("a", "an", "the"))
_COUNTED = "zero one two three four five six seven eight nine ten"
NUMBERS = {word: str(number) for number, word in enumerate(_COUNTED.split())} | {"none": "0"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll how's
isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't
she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTIONS = {word[:at] + word[at + 1 :]: word for word in _CONTRACTED.split() for at, mark in enumerate(word) if mark == "'"} | {
    "somebody'd": "somebodyd"  # so the challenge has it
}
"""The words whose apostrophe the challenge puts back, each without one of its apostrophes."""
_LETTERED = re.compile(r"\(?([a-z])(?:[).:,]|$)", re.IGNORECASE)
_PERIOD = re.compile(r"\.(?!\d)")


def evalai_normalise(answer: str) -> str:
    """An answer as the VQA challenge compares it: no case, punctuation or articles, number words as digits, contractions spelt one way."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip().replace("\n", " ").replace("\t", " ")
    words = [NUMBERS.get(word, word) for word in _without_punctuation(text).split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _without_punctuation(text: str) -> str:
    """A mark that has a space beside it anywhere in the text goes everywhere, any other becomes a space; a point stays before a digit."""
    bare = text
    for mark in PUNCTUATION:
        bare = bare.replace(mark, "" if f"{mark} " in text or f" {mark}" in text else " ")
    return _PERIOD.sub("", bare)


def vqa_accuracy(prediction: str, answers: Sequence[str], _choices: Sequence[str] = ()) -> float:
    """min(matches / 3, 1), averaged over the sets of annotators with one left out, in 0..1."""
    given = evalai_normalise(prediction)
    hits = [evalai_normalise(answer) == given for answer in answers]
    matches = sum(hits)
    return sum(min((matches - hit) / 3, 1.0) for hit in hits) / len(hits)


def choice_match(prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
    """1.0 where the right option is given by its letter (`B`, `b.`, `(B)`, `B) a dog`) or by its text, else 0.0.

    Args:
        answers: the letter and the text; what the question itself wants where there are no `choices`.
        choices: the options' texts; a letter that is none of theirs is read as text.

    """
    given = normalise(prediction)
    lettered = _LETTERED.match(given)
    if lettered and LETTERS.index(lettered[1].upper()) < (len(choices) or len(LETTERS)):
        return float(lettered[1].upper() == answers[0].upper())
    return exact_match(given.removesuffix("."), [answer.removesuffix(".") for answer in answers])


def said(prediction: str) -> str | None:
    """`no`, `yes` or neither: what the first sentence holds, and `no` (or `not`) where it holds both, as POPE reads it."""
    words = set(re.findall(r"[a-z]+", prediction.lower().split(".")[0]))
    if words & {"no", "not"}:
        return "no"
    return "yes" if "yes" in words else None


def yes_no_match(prediction: str, answers: Sequence[str], _choices: Sequence[str] = ()) -> float:
    """1.0 where the prediction says what the first right answer says, else 0.0."""
    return float(said(prediction) == normalise(answers[0]))


def _exact(prediction: str, answers: Sequence[str], _choices: Sequence[str] = ()) -> float:
    return exact_match(prediction, answers)


SCORERS: dict[str, Scorer] = {"exact": _exact, "vqa": vqa_accuracy, "choice": choice_match, "yes_no": yes_no_match}
"""By a manifest's `metric`: prediction, right answers and options to a score in 0..1."""


def scores(metric: str, predictions: Sequence[str], questions: Dataset) -> Floats:
    """The score of each prediction."""
    score = SCORERS[metric]
    choices = options(questions)
    return np.array([score(*row) for row in zip(predictions, questions["answers"], choices, strict=True)])


def options(questions: Dataset) -> list[list[str]]:
    """The options of each question, none where it is not a multiple choice."""
    return list(questions["choices"]) if "choices" in questions.column_names else [[]] * len(questions)


def yes_no_figures(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float | None]:
    """POPE's figures over a set, in 0..1: accuracy, precision, recall and F1 of `yes`, and `yes_ratio`, how often it was said.

    An answer that says neither is wrong, and not a `yes`. None where there is nothing to divide by.
    """
    given, right = [said(one) for one in predictions], [normalise(one[0]) for one in answers]
    pairs = list(zip(given, right, strict=True))
    true = pairs.count(("yes", "yes"))
    claimed, present = given.count("yes"), right.count("yes")
    precision, recall = _ratio(true, claimed), _ratio(true, present)
    return {
        "accuracy": _ratio(sum(one == other for one, other in pairs), len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * true, claimed + present),
        "yes_ratio": _ratio(claimed, len(pairs)),
    }


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
