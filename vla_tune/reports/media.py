"""Pictures and videos as data that lies inside the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_tune.config import Config, completed, structured
from vla_tune.console import warn
from vla_tune.errors import UserError, one_line
from vla_tune.reports.runs import Row, Run

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAIL = 224
LOST, GAINED = 16, 8
"""How many questions of each kind the page shows."""


def changed_counts(run: Run) -> Row:
    """How many answers fine-tuning changed, and how many of these were lost or gained."""
    changed, lost, gained = _changed(run)
    return {"total": len(run.predictions), "changed": len(changed), "lost": len(lost), "gained": len(gained)}


def changed_cards(run: Run) -> list[Row]:
    """Some of the questions whose answer became wrong or right, spread over the types, with their pictures."""
    _, lost, gained = _changed(run)
    shown = _spread(lost, LOST) + _spread(gained, GAINED)
    pictures = _pictures(run, shown)
    return [
        {**row, "answers": answers(row), "gained": row["score"] > row["base_score"], "picture": pictures.get(_key(row))} for row in shown
    ]


def _key(row: Row) -> tuple[Any, str]:
    return row["image_id"], row["question"]


def answers(row: Row) -> str:
    """The accepted answers, each once, in one line."""
    given = row["answers"]
    return given if isinstance(given, str) else ", ".join(dict.fromkeys(str(one) for one in given))


def video_data(file: Path) -> str:
    """An mp4 as a `data:` address."""
    return f"data:video/mp4;base64,{base64.b64encode(file.read_bytes()).decode()}"


def _changed(run: Run) -> tuple[list[Row], list[Row], list[Row]]:
    changed = [row for row in run.predictions if row["prediction"] != row["base_prediction"]]
    lost = [row for row in changed if row["score"] < row["base_score"]]
    return changed, lost, [row for row in changed if row["score"] > row["base_score"]]


def _spread(rows: list[Row], count: int) -> list[Row]:
    """`count` rows, taken from the types in turn."""
    by_type: dict[str, list[Row]] = {}
    for row in rows:
        by_type.setdefault(row["type"], []).append(row)
    turns = [row for place in range(len(rows)) for queue in by_type.values() for row in queue[place : place + 1]]
    return turns[:count]


def _pictures(run: Run, shown: list[Row]) -> dict[tuple[Any, str], str]:
    """The pictures as `data:` addresses, by id and question, from the questions that the evaluation asked.

    A run may have been made elsewhere: where its questions are not here, or others are, there are no pictures.
    """
    if not shown:
        return {}
    from vla_tune.vqa.dataset import vqa_questions

    wanted = {_key(row) for row in shown}
    try:
        config = structured(Config, completed(run.artifacts["eval-vqa"].config), [], str(run.path))
        questions = vqa_questions(config.vqa.manifest, "test", config.vqa.questions)
        asked = zip(questions["image_id"], questions["question"], strict=True)
        places = {name: place for place, name in enumerate(asked) if name in wanted}
        return {name: _picture_data(questions[place]["image"]) for name, place in places.items()}
    except (UserError, OSError) as error:
        warn(f"{run.path}: the pictures of its questions are left out: {one_line(error)}")
        return {}


def _picture_data(image: Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    small.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
