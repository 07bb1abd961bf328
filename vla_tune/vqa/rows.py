"""A row of somebody else's questions: taken as it is meant, or refused by name."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_tune.data.places import shortened
from vla_tune.errors import UserError
from vla_tune.vqa.scorers import LETTERS
from vla_tune.vqa.scoring import normalise

if TYPE_CHECKING:
    from vla_tune.data.manifests import BenchmarkManifest

type Row = dict[str, Any]

UNTYPED = "question"
"""The type of questions that have none."""
YES_NO = ("yes", "no")


class NotUnderstoodError(ValueError):
    """What stands in a row can be read in several ways, or in none."""


def question(row: Row, manifest: BenchmarkManifest, number: int) -> Row:
    """A row in our columns; `where` and `split` go with it.

    Args:
        row: `where`, question, answers, choices, image_id, question_id, type and split (None: dealt by picture) as they stand.
        manifest: that the row is of.
        number: of the row, its name where it has none.

    Raises:
        UserError: the row and the key are named.

    """
    taken: Row = {}
    for key, take in (("image_id", word), ("question", _asked), ("question_id", _optional), ("type", _kind), ("choices", choices)):
        taken[key] = _taken(row, key, take)
    taken["answers"] = _taken(row, "answers", lambda value: answers(value, taken["choices"], manifest.metric))
    split = row["split"] or _dealt(taken["image_id"])
    taken["question_id"] = taken["question_id"] or f"{split}-{number}"
    return {**taken, "prompt": _prompt(taken, manifest.prompt), "split": split, "where": row["where"]}


def word(value: Any) -> str:
    """A text, or a number as it is written by hand: 3.0 is 3.

    Raises:
        NotUnderstoodError: it is neither.

    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise NotUnderstoodError("it holds half a character, a lone surrogate") from None
        return value.strip()
    if isinstance(value, bool):
        raise NotUnderstoodError('true and false can be worded in many ways; write a text, such as "yes"')
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else _shortest(value)
    if isinstance(value, Decimal) and value.is_finite():
        return format(value.normalize(), "f")
    raise NotUnderstoodError("it is neither a text nor a number")


def answers(value: Any, options: list[str], metric: str) -> list[str]:
    """A row's answers, the most frequent first: the one that a VLM is shown as the right one; of a multiple choice the letter and the text.

    Raises:
        NotUnderstoodError: one is neither a text nor a number, or the number of no option, or neither yes nor no where these are asked.

    """
    given = [_unwrapped(one) for one in value] if isinstance(value, list) else [_unwrapped(value)]
    if metric == "yes_no":
        given = [YES_NO[not one] if isinstance(one, bool) else one for one in given]
    texts = [word(one) for one in given if one is not None]
    if not any(texts):
        raise NotUnderstoodError("there is none")
    if options:
        return _chosen(texts, options)
    counts = Counter(texts)
    texts.sort(key=lambda text: (not text, -counts[text]))
    if metric == "yes_no" and normalise(texts[0]) not in YES_NO:
        raise NotUnderstoodError("metric=yes_no takes yes or no")
    least = 2 if metric == "vqa" else 1  # one annotator is left out
    if len(texts) < least:
        raise NotUnderstoodError(f"there are fewer than the {least} that metric={metric} takes")
    return texts


def choices(value: Any) -> list[str]:
    """The options' texts; none where it is no multiple choice.

    Raises:
        NotUnderstoodError: it is no list of texts and numbers, or has more options than there are letters.

    """
    if value is None:
        return []
    if not isinstance(value, list):
        raise NotUnderstoodError("it is no list of options")
    texts = [word(one) for one in value]
    if not all(texts):
        raise NotUnderstoodError("an option is empty")
    if len(texts) > len(LETTERS):
        raise NotUnderstoodError(f"{len(texts)} options are more than there are letters")
    return texts


def _taken(row: Row, key: str, take: Any) -> Any:
    try:
        return take(row[key])
    except NotUnderstoodError as error:
        raise UserError(f"{row['where']}: {key}: {error}; here it is {shortened(row[key])}") from None


def _dealt(image_id: str) -> str:
    """The split of a picture where all questions lie in one: half of the pictures each."""
    return "anchor" if text_hash(f"split {image_id}") < "8" else "test"


def text_hash(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def _prompt(taken: Row, pattern: str) -> str:
    """What is asked: braces within a question or an option are its own."""
    options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, taken["choices"], strict=False))
    filled = {"{choices}": options, "{question}": taken["question"]}
    return re.sub(r"\{choices\}|\{question\}", lambda mark: filled[mark[0]], pattern)


def _chosen(texts: list[str], options: list[str]) -> list[str]:
    if len(set(texts)) > 1 or not (texts[0].isascii() and texts[0].isdigit()) or int(texts[0]) >= len(options):
        raise NotUnderstoodError(f"it is not the number of one of the {len(options)} options, counted from 0")
    right = int(texts[0])
    return [LETTERS[right], options[right]]


def _asked(value: Any) -> str:
    if not isinstance(value, str):
        raise NotUnderstoodError("it is no text")
    if not word(value):
        raise NotUnderstoodError("it is empty")
    return value


def _optional(value: Any) -> str | None:
    """A text, where there is one; pandas writes NaN for none."""
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return None if missing else word(value) or None


def _kind(value: Any) -> str:
    return str(value) if isinstance(value, bool) else _optional(value) or UNTYPED


def _unwrapped(value: Any) -> Any:
    """What an answer is put in: `{"answer": ...}`, or a list of its own."""
    while (isinstance(value, list) and len(value) == 1) or (isinstance(value, dict) and "answer" in value):
        value = value["answer"] if isinstance(value, dict) else value[0]
    return value


def _shortest(value: float) -> str:
    """As few digits as tell the number from others; 0.1 in 32 bits is not 0.10000000149."""
    short = np.float32(value)
    return str(short) if float(short) == value else str(value)
