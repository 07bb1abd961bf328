"""Parquet files of somebody's questions: the columns that a manifest names."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_tune.data.parquet import column_values, fetched_folder, parquet_table
from vla_tune.data.places import shortened
from vla_tune.errors import UserError
from vla_tune.resources import cache_folder
from vla_tune.vqa.rows import NotUnderstoodError, Row, word

if TYPE_CHECKING:
    from datasets import Dataset

    from vla_tune.data.manifests import BenchmarkManifest


def table_rows(manifest: BenchmarkManifest, split: str) -> tuple[list[Row], Dataset]:
    """All rows of a split's files, and beside them a dataset with the column `image`.

    Raises:
        UserError: the files are not there and cannot be fetched, a column is missing, or a picture.

    """
    from datasets import ClassLabel

    from vla_tune.data.picture_column import column_of, content_id, stored_pictures

    pattern = {"anchor": manifest.anchor, "test": manifest.test}[split]
    folder = fetched_folder(manifest, [pattern, *([manifest.pictures] if manifest.pictures else [])])
    table = parquet_table(folder, pattern, manifest)
    columns = manifest.columns
    named = {key: getattr(columns, key) for key in ("question", "answers", "choices", "image_id", "question_id", "type")}
    values = {key: _column(table, key, name, manifest) for key, name in named.items()}
    feature = table.features.get(columns.answers)
    if isinstance(feature, ClassLabel) and columns.choices is None:
        values["answers"] = [None if value is None else feature.names[value] for value in values["answers"]]
    if manifest.pictures:
        pictures = _by_id(_extracted(folder, manifest), values["image_id"], manifest)
    else:
        _check_named(table, "image", columns.image, manifest)
        pictures = column_of(table, columns.image, folder, manifest.dataset)
        if columns.image_id is None:
            values["image_id"] = [content_id(stored) for stored in stored_pictures(pictures)]
    owner = None if manifest.anchor == manifest.test else split
    places = ({"split": owner, "where": f"{manifest.dataset}: row {number}"} for number in range(len(table)))
    return [
        dict(zip(values, row, strict=True)) | place for row, place in zip(zip(*values.values(), strict=True), places, strict=True)
    ], pictures


def _column(table: Dataset, key: str, name: str | None, manifest: BenchmarkManifest) -> list[Any]:
    if name is None:
        return [None] * len(table)
    _check_named(table, key, name, manifest)
    return column_values(table, name)


def _check_named(table: Dataset, key: str, name: str, manifest: BenchmarkManifest) -> None:
    first, *rest = [name] if name in table.features else name.split(".")
    if first not in table.features:
        raise UserError(f"columns.{key}: {manifest.dataset} has no column '{name}'; it has {', '.join(sorted(table.column_names))}")
    feature = table.features[first]
    for part in rest:
        if not isinstance(feature, dict) or part not in feature:
            raise UserError(
                f"columns.{key}: {manifest.dataset} has no '{part}' in '{name}'; '{first}' is {shortened(table.features[first])}"
            )
        feature = feature[part]


def _extracted(folder: Path, manifest: BenchmarkManifest) -> dict[str, Row]:
    """The pictures of `manifest.pictures` as stored in files, by id: many questions share one."""
    from vla_tune.data.picture_column import column_of, stored_pictures

    table = parquet_table(folder, str(manifest.pictures), manifest)
    missing = {"id", manifest.columns.image} - set(table.column_names)
    if missing:
        raise UserError(f"pictures: {manifest.pictures} has no column '{min(missing)}'; it has {', '.join(sorted(table.column_names))}")
    own = cache_folder() / "pictures"
    own.mkdir(parents=True, exist_ok=True)
    pictures = column_of(table, manifest.columns.image, folder, f"{manifest.dataset}, {manifest.pictures}")
    return {
        _id(name, f"{manifest.dataset}, {manifest.pictures}: row {row}: id"): _filed(stored, own)
        for row, (name, stored) in enumerate(zip(column_values(table, "id"), stored_pictures(pictures), strict=True))
    }


def _filed(stored: Row, own: Path) -> Row:
    """A picture in a file that is named by its content."""
    content = stored["bytes"]
    if content is None:
        return stored
    file = own / hashlib.sha256(content).hexdigest()[:32]
    if not file.is_file() or file.stat().st_size != len(content):
        _write(file, content)
    return {**stored, "bytes": None, "path": str(file)}


def _write(file: Path, content: bytes) -> None:
    """Under a name of its own, then renamed: another process may be writing the same picture."""
    handle, fresh = tempfile.mkstemp(dir=file.parent)
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
    Path(fresh).rename(file)


def _by_id(files: dict[str, Row], ids: list[Any], manifest: BenchmarkManifest) -> Dataset:
    from vla_tune.data.picture_column import picture_column

    names = [_id(name, f"{manifest.dataset}: row {row}: image_id") for row, name in enumerate(ids)]
    lost = [name for name in names if name not in files]
    if lost:
        raise UserError(f"{manifest.dataset}: {manifest.pictures} holds no picture '{lost[0]}', which columns.image_id names")
    return picture_column(files[name] for name in names)


def _id(value: Any, where: str) -> str:
    try:
        return word(value)
    except NotUnderstoodError as error:
        raise UserError(f"{where}: {error}; here it is {shortened(value)}") from None
