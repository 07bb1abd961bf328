"""Pictures as a column of a Hugging Face dataset that is decoded by `pictures.read_rgb`, and knows where each one came from."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Image
from datasets.table import InMemoryTable

from vla_tune.artifacts.folder import file_digest
from vla_tune.console import warn
from vla_tune.data.pictures import look, read_rgb
from vla_tune.data.places import file_inside
from vla_tune.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

type Stored = dict[str, Any]
"""`bytes` (or None), `path` of a file (or None), and `where`: what the picture is called in messages."""

BUDGET = 40_000_000
"""Pixels that are decoded before anything is done with a set: all pictures of a small one, in a second."""


@dataclass
class RgbImage(Image):  # type: ignore[misc]  # datasets is untyped
    """A feature of `datasets`: what is stored is `Stored`, what is read is RGB.

    Raises:
        UserError: a picture cannot be read.

    """

    pa_type: ClassVar[Any] = pa.struct({"bytes": pa.binary(), "path": pa.string(), "where": pa.string()})

    def decode_example(self, value: Stored, token_per_repo_id: Any = None) -> Picture:  # noqa: ARG002
        return read_rgb(_source(value), value["where"])

    def encode_example(self, value: Stored) -> Stored:
        return value

    def cast_storage(self, storage: pa.Array) -> pa.Array:
        return storage.cast(self.pa_type)


def picture_column(stored: Iterable[Stored]) -> Dataset:
    """A dataset with the column `image`, to be cast to `RgbImage` where it is used."""
    return _as_dataset(pa.chunked_array([pa.array(list(stored), type=RgbImage.pa_type)]))


def column_of(table: Dataset, name: str, folder: Path, title: str) -> Dataset:
    """The pictures of a table that somebody made, as `picture_column` has them.

    Args:
        table: of Parquet files, all rows of them.
        name: of the column.
        folder: that the files lie in: paths of pictures start there.
        title: what the table is called.

    Raises:
        UserError: the column holds something else, or not in every row.

    """
    chunks, first = [], 0
    for chunk in table.data.column(name).chunks:
        chunks.append(_stored(chunk, name, folder, title, first))
        first += len(chunk)
    return _as_dataset(pa.chunked_array(chunks, type=RgbImage.pa_type))


def stored_pictures(pictures: Dataset) -> Iterable[Stored]:
    """The column `image` as it lies, row by row."""
    for batch in pictures.select_columns(["image"]).with_format("arrow").iter(64):
        yield from batch.column("image").to_pylist()


def content_id(stored: Stored) -> str:
    """The picture's name by its content."""
    if stored["bytes"] is None:
        return file_digest(Path(stored["path"]))[:16]
    return hashlib.sha256(stored["bytes"]).hexdigest()[:16]


def check_pictures(pictures: Dataset, title: str) -> None:
    """Decode the first pictures, up to `BUDGET` pixels, and tell what is done with them that their owner may not expect.

    Args:
        pictures: in an order that is no order of theirs, so that the first are a sample.
        title: what the set is called.

    Raises:
        UserError: one of them cannot be read.

    """
    left, seen, found = BUDGET, Counter[str](), dict[str, str]()
    for stored in stored_pictures(pictures):
        picture, notes = look(_source(stored), stored["where"])
        left -= picture.width * picture.height
        for note in notes:
            kind = note.partition(":")[0]
            seen[kind] += 1
            found.setdefault(kind, f"{stored['where']} {note}")
        if left < 0:
            break
    for kind, text in found.items():
        more = f" ({seen[kind]} such pictures among the first of {title})" if seen[kind] > 1 else ""
        _warn_once(text + more)


@functools.cache
def _warn_once(text: str) -> None:
    warn(text)


def _source(stored: Stored) -> Path | bytes:
    content: bytes | None = stored["bytes"]
    return Path(stored["path"]) if content is None else content


def _as_dataset(column: pa.ChunkedArray) -> Dataset:
    return Dataset(InMemoryTable(pa.table({"image": column})))


def _stored(chunk: pa.Array, name: str, folder: Path, title: str, first: int) -> pa.Array:
    """A chunk of a column as `Stored`; the pictures themselves are not copied."""
    try:
        held = Image().cast_storage(chunk) if not pa.types.is_nested(chunk.type) or pa.types.is_struct(chunk.type) else None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, TypeError, ValueError):
        held = None
    if held is None or not _may_hold(chunk.type):
        raise UserError(f"columns.image: '{name}' of {title} holds no pictures (PNG or JPEG bytes, or paths) but {chunk.type}")
    content, paths = pc.struct_field(held, [0]), pc.struct_field(held, [1]).to_pylist()
    places = [f"{title}: row {first + row}" for row in range(len(chunk))]
    for row, there in enumerate(content.is_valid().to_pylist()):
        if there:
            continue
        if not paths[row]:
            raise UserError(f"{places[row]}: columns.image: there is no picture in '{name}'")
        paths[row] = str(file_inside(folder, paths[row], places[row]))
    return pa.StructArray.from_arrays([content, pa.array(paths, pa.string()), pa.array(places)], fields=list(RgbImage.pa_type))


def _may_hold(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.get_field_index(part) >= 0 for part in ("bytes", "path"))
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary))
