"""Questions that somebody else asked, in the columns of our own: benchmarks from the Hugging Face Hub, and local folders.

The order is that of a hash of the question's id, so the first N questions of a split are a smaller set of the same kind.
Pictures stay in the files that they came in, and are read, as RGB, when they are looked at.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_tune.artifacts.folder import file_digest
from vla_tune.data.manifests import QUESTIONS_FILE, BenchmarkManifest
from vla_tune.data.parquet import column_values, fetched_folder, parquet_table
from vla_tune.errors import UserError
from vla_tune.resources import cache_folder
from vla_tune.vqa.scorers import LETTERS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from datasets import Dataset

type Row = dict[str, Any]

UNTYPED = "question"
"""The type of questions that have none."""
SPLITS = {"train": "anchor", "anchor": "anchor", "test": "test"}
"""What a row's `split` in a local folder stands for."""


def benchmark_questions(manifest: BenchmarkManifest, split: str) -> Dataset:
    """All questions of a split, `anchor` or `test`.

    Columns: question_id, image_id, image (RGB), type, question (as the benchmark words it), prompt (what the VLM is asked),
    answers (every annotator's, the most frequent first; of a multiple choice the letter and the text), choices (the options' texts).

    Raises:
        UserError: the files are not there and cannot be fetched, a column is missing, or a row is not understood.

    """
    from datasets import Dataset, Features, Image, List, Value, concatenate_datasets

    local = Path(manifest.dataset).expanduser()
    rows, pictures = _from_folder(local) if (local / QUESTIONS_FILE).is_file() else _from_parquet(manifest, split)
    rows = [_question(row, manifest, number) for number, row in enumerate(rows)]
    _check(rows, manifest)
    chosen = [number for number, row in enumerate(rows) if row.pop("split") == split]
    if not chosen:
        raise UserError(f"{manifest.dataset}: there is no question for the {split} split; the other split has all {len(rows)}")
    chosen.sort(key=lambda number: _hash(rows[number]["question_id"]))
    text, texts = Value("string"), List(Value("string"))
    features = Features(
        dict.fromkeys(("question_id", "image_id", "type", "question", "prompt"), text) | {"answers": texts, "choices": texts}
    )
    words = Dataset.from_list(rows, features=features)
    return concatenate_datasets([words, pictures.cast_column("image", Image(mode="RGB"))], axis=1).select(chosen)


def _question(row: Row, manifest: BenchmarkManifest, number: int) -> Row:
    """A row in our columns, and the split that it belongs to."""
    try:
        answers, choices = _answers(row["answers"]), list(row["choices"] or [])
        if choices:
            right = int(answers[0])
            answers = [LETTERS[right], dict(enumerate(choices))[right]]
    except (TypeError, ValueError, KeyError, IndexError):
        raise UserError(f"{manifest.dataset}: the answers of row {number} are not understood: {row['answers']!r}") from None
    owner = row["split"] or _dealt(str(row["image_id"]))
    options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    return {
        "question_id": f"{owner}-{number}" if row["question_id"] is None else str(row["question_id"]),
        "image_id": str(row["image_id"]),
        "type": UNTYPED if row["type"] is None else str(row["type"]),
        "question": row["question"],
        "prompt": manifest.prompt.replace("{choices}", options).replace("{question}", row["question"]),
        "answers": answers,
        "choices": choices,
        "split": owner,
    }


def _answers(value: Any) -> list[str]:
    """A row's answers, the most frequent first: the one that a VLM is shown as the right one."""
    given = value if isinstance(value, list) else [value]
    texts = [str(one["answer"] if isinstance(one, dict) else one).strip() for one in given if one is not None]
    counts = Counter(texts)
    return sorted(texts, key=lambda text: -counts[text])


def _check(rows: list[Row], manifest: BenchmarkManifest) -> None:
    twice = [name for name, count in Counter(row["question_id"] for row in rows).items() if count > 1]
    if twice:
        raise UserError(f"{manifest.dataset}: question_id: {twice[0]} stands for several questions; name another column, or none")
    least = 2 if manifest.metric == "vqa" else 1  # one annotator is left out
    poor = [row["question_id"] for row in rows if len(row["answers"]) < least]
    if poor:
        raise UserError(f"{manifest.dataset}: answers: question {poor[0]} has fewer than the {least} that metric={manifest.metric} takes")


def _dealt(image_id: str) -> str:
    """The split of a picture where all questions lie in one: half of the pictures each."""
    return "anchor" if _hash(f"split {image_id}") < "8" else "test"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# A local folder.


def _from_folder(folder: Path) -> tuple[list[Row], Dataset]:
    """The rows of `qa.jsonl`, and beside them a dataset with the column `image`."""
    from datasets import Dataset, Features, Image

    file = folder / QUESTIONS_FILE
    rows, digests = [], dict[str, str]()
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if not line.strip():
            continue
        row = _local_row(line, f"{file}:{number}")
        picture = folder / row["image"]
        if row["image"] not in digests:
            if not picture.is_file():
                raise UserError(f"{file}:{number}: image: there is no picture {picture}")
            digests[row["image"]] = file_digest(picture)[:16]
        rows.append({**row, "image": str(picture.resolve()), "image_id": digests[row["image"]]})
    if not rows:
        raise UserError(f"{file}: no question in it")
    if len({row["split"] is None for row in rows}) > 1:
        raise UserError(f"{file}: split: give it in every row, or in none")
    pictures = [{"bytes": None, "path": row["image"]} for row in rows]
    return rows, Dataset.from_dict({"image": pictures}, features=Features({"image": Image()}))


def _local_row(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
        question, image = row["question"], row["image"]
        answers = row["answers"] if "answers" in row else row["answer"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where}: not a JSON object with image, question and answer (or answers): {error!r}") from None
    split = row.get("split")
    if split is not None and split not in SPLITS:
        raise UserError(f"{where}: split: '{split}' is neither of train and test")
    named = {key: row.get(key) for key in ("type", "question_id")}
    return {"question": str(question), "image": str(image), "answers": answers, "choices": None, "split": split and SPLITS[split], **named}


# Parquet files.


def _from_parquet(manifest: BenchmarkManifest, split: str) -> tuple[list[Row], Dataset]:
    """The rows of a split's files, and beside them a dataset with the column `image`."""
    patterns = {"anchor": manifest.anchor, "test": manifest.test}
    folder = fetched_folder(manifest, [patterns[split], *([manifest.pictures] if manifest.pictures else [])])
    table = parquet_table(folder, patterns[split], manifest)
    columns = manifest.columns
    named = {key: getattr(columns, key) for key in ("question", "answers", "choices", "image_id", "question_id", "type")}
    known = set(table.column_names)
    for key, name in {**named, **({} if manifest.pictures else {"image": columns.image})}.items():
        if name is not None and name.split(".")[0] not in known:
            raise UserError(f"columns.{key}: {manifest.dataset} has no column '{name}'; it has {', '.join(sorted(known))}")
    values = {key: [None] * len(table) if name is None else column_values(table, name) for key, name in named.items()}
    if manifest.pictures:
        files = _extracted(folder, manifest)
        pictures = _pictures_by_id(files, values["image_id"], manifest)
    else:
        pictures = table.select_columns([columns.image]).rename_columns({columns.image: "image"})
        if columns.image_id is None:
            values["image_id"] = _content_ids(pictures)
    owner = None if manifest.anchor == manifest.test else split
    return [dict(zip(values, row, strict=True)) | {"split": owner} for row in zip(*values.values(), strict=True)], pictures


def _content_ids(pictures: Dataset) -> list[str]:
    from datasets import Image

    stored: Iterable[Row] = pictures.cast_column("image", Image(decode=False))
    return [hashlib.sha256(row["image"]["bytes"]).hexdigest()[:16] for row in stored]


def _extracted(folder: Path, manifest: BenchmarkManifest) -> dict[str, Path]:
    """The pictures of `manifest.pictures` as files under the cache folder, by id: many questions share one."""
    from datasets import Image

    table = parquet_table(folder, str(manifest.pictures), manifest)
    missing = {"id", manifest.columns.image} - set(table.column_names)
    if missing:
        raise UserError(f"pictures: {manifest.pictures} has no column '{min(missing)}'; it has {', '.join(sorted(table.column_names))}")
    own = cache_folder() / "pictures" / _hash(f"{manifest.dataset} {manifest.revision} {manifest.pictures}")[:16]
    own.mkdir(parents=True, exist_ok=True)
    files = {}
    for row in table.cast_column(manifest.columns.image, Image(decode=False)):
        name = str(row["id"])
        files[name] = own / _hash(name)[:32]
        content = row[manifest.columns.image]["bytes"]
        if not files[name].is_file() or files[name].stat().st_size != len(content):
            _write(files[name], content)
    return files


def _write(file: Path, content: bytes) -> None:
    """Under a name of its own, then renamed: another process may be writing the same picture."""
    handle, fresh = tempfile.mkstemp(dir=file.parent)
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
    Path(fresh).rename(file)


def _pictures_by_id(files: dict[str, Path], ids: list[Any], manifest: BenchmarkManifest) -> Dataset:
    from datasets import Dataset, Features, Image

    lost = [name for name in map(str, ids) if name not in files]
    if lost:
        raise UserError(f"{manifest.dataset}: {manifest.pictures} holds no picture '{lost[0]}', which columns.image_id names")
    pictures = [{"bytes": None, "path": str(files[str(name)])} for name in ids]
    return Dataset.from_dict({"image": pictures}, features=Features({"image": Image()}))
