"""Questions that somebody else asked, in the columns of our own: benchmarks from the Hugging Face Hub, and local folders.

The order is that of a hash of the question's id, so the first N questions of a split are a smaller set of the same kind.
Pictures stay in the files that they came in, and are read, as RGB, when they are looked at.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from vla_tune.data.manifests import QUESTIONS_FILE, BenchmarkManifest
from vla_tune.errors import UserError
from vla_tune.vqa.folders import folder_rows
from vla_tune.vqa.rows import Row, question, text_hash
from vla_tune.vqa.tables import table_rows

if TYPE_CHECKING:
    from datasets import Dataset


def benchmark_questions(manifest: BenchmarkManifest, split: str) -> Dataset:
    """All questions of a split, `anchor` or `test`; every row was looked at, and the first pictures.

    Columns: question_id, image_id, image (RGB), type, question (as the benchmark words it), prompt (what the VLM is asked),
    answers (every annotator's, the most frequent first; of a multiple choice the letter and the text), choices (the options' texts).

    Raises:
        UserError: the files are not there and cannot be fetched, a column is missing, or a row or a picture is not understood.

    """
    from datasets import Dataset, Features, List, Value, concatenate_datasets

    from vla_tune.data.picture_column import RgbImage

    local = Path(manifest.dataset).expanduser()
    found, pictures = folder_rows(local) if (local / QUESTIONS_FILE).is_file() else table_rows(manifest, split)
    rows = [question(row, manifest, number) for number, row in enumerate(found)]
    _check_ids(rows)
    chosen = [number for number, row in enumerate(rows) if row["split"] == split]
    if not chosen:
        raise UserError(f"{manifest.dataset}: there is no question for the {split} split; the other split has all {len(rows)}")
    chosen.sort(key=lambda number: text_hash(rows[number]["question_id"]))
    text, texts = Value("string"), List(Value("string"))
    kinds = dict.fromkeys(("question_id", "image_id", "type", "question", "prompt"), text) | {"answers": texts, "choices": texts}
    words = Dataset.from_list([{key: row[key] for key in kinds} for row in rows], features=Features(kinds))
    return concatenate_datasets([words, pictures], axis=1).cast_column("image", RgbImage()).select(chosen)


def check_question_pictures(questions: Dataset, title: str) -> None:
    """As `check_pictures`, each picture once."""
    from vla_tune.data.picture_column import check_pictures

    first = dict[str, int]()
    for number, name in enumerate(questions["image_id"]):
        first.setdefault(name, number)
    check_pictures(questions.select(list(first.values())), title)


def _check_ids(rows: list[Row]) -> None:
    names = Counter(row["question_id"] for row in rows)
    twice = next((row for row in rows if names[row["question_id"]] > 1), None)
    if twice is not None:
        raise UserError(f"{twice['where']}: question_id: {twice['question_id']} stands for several questions; name another column, or none")
