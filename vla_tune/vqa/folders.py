"""A folder of somebody's questions: `qa.jsonl`, a JSON object a line, beside its pictures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_tune.artifacts.folder import file_digest
from vla_tune.data.manifests import QUESTIONS_FILE
from vla_tune.data.places import file_inside, shortened, utf8_text
from vla_tune.errors import UserError, nearest, one_line

if TYPE_CHECKING:
    from datasets import Dataset

    from vla_tune.vqa.rows import Row

SPLITS = {"train": "anchor", "anchor": "anchor", "test": "test"}
"""What a row's `split` stands for."""
KEYS = ("image", "question", "answer", "answers", "split", "type", "question_id")
LINE = re.compile(r"\r\n|\n|\r")
"""Not `str.splitlines`: U+2028 and others may stand in a text, a line's end cannot."""


def folder_rows(folder: Path) -> tuple[list[Row], Dataset]:
    """All rows of `qa.jsonl`, and beside them a dataset with the column `image`.

    Raises:
        UserError: the line is named.

    """
    from vla_tune.data.picture_column import picture_column

    file = folder / QUESTIONS_FILE
    rows, pictures, known = [], [], dict[str, tuple[str, str]]()
    for number, line in enumerate(LINE.split(utf8_text(file.read_bytes(), str(file))), 1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        row, name = _row(line, where)
        if name not in known:
            real = file_inside(folder, name, f"{where}: image")
            known[name] = str(real), file_digest(real)[:16]
        path, digest = known[name]
        rows.append({**row, "image_id": digest, "where": where})
        pictures.append({"bytes": None, "path": path, "where": f"{where}: {name}"})
    if not rows:
        raise UserError(f"{file}: no question in it")
    if len({row["split"] is None for row in rows}) > 1:
        raise UserError(f"{file}: split: give it in every row, or in none")
    return rows, picture_column(pictures)


def _row(line: str, where: str) -> tuple[Row, str]:
    """A line's row, and the name of its picture."""
    row = _parsed(line, where)
    image, split = row.get("image"), row.get("split")
    if not isinstance(image, str) or not image:
        raise UserError(f"{where}: image: it must be the path of a picture, and is {shortened(image)}")
    if split is not None and (not isinstance(split, str) or split not in SPLITS):
        raise UserError(f"{where}: split: {shortened(split)} is neither of train and test; {nearest(str(split), list(SPLITS))}")
    answers = row["answer"] if row.get("answers") is None else row["answers"]
    named = {key: row.get(key) for key in ("type", "question_id")}
    return {"question": row["question"], "answers": answers, "choices": None, "split": SPLITS[split] if split else None, **named}, image


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        hint = "; it looks like UTF-16, save the file as UTF-8" if "\0" in line else ""
        raise UserError(f"{where}: not a JSON object ({one_line(error)}){hint}") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: not a JSON object but {shortened(row)}")
    for key in ("image", "question", "answer"):
        if key not in row and not (key == "answer" and "answers" in row):
            other = next((f"; '{one}' looks like it" for one in row if one not in KEYS and nearest(one, [key]).startswith("did")), "")
            raise UserError(f"{where}: there is no {key} in it{other}")
    return row


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key stands in it twice")
    return row
