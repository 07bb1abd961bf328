"""Labelled pictures as people put them together: a folder or a .zip with the pictures and a table of them, `index.csv`."""

from __future__ import annotations

import csv
import io
import lzma
import posixpath
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from vla_tune.data.manifests import INDEX_FILE
from vla_tune.data.pictures import check_header
from vla_tune.data.places import file_inside, shortened, utf8_text
from vla_tune.errors import UserError, one_line

SPLITS = ("train", "test")
INDEX_COLUMNS = ("file", "label", "split")
MOST_INDEX = 100_000_000
"""Bytes of an `index.csv`; a swollen one in a zip is not unpacked."""
DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, NotImplementedError, OSError, EOFError, ValueError)
"""What zipfile raises for what is damaged, locked with a password, or packed in a rare way."""

type IndexRow = dict[str, str]
"""`file`, `label`, `split` and `where`, the row's name in messages."""


def indexed(place: Path, split: str) -> tuple[list[IndexRow], list[dict[str, Any]]]:
    """All rows of the index, and the pictures of the split's rows as `picture_column` takes them: a folder's stay in their files,
    a zip's are held in memory.

    Raises:
        UserError: the file and the row are named.

    """
    if place.suffix != ".zip":
        rows = _read_index((place / INDEX_FILE).read_bytes(), place)
        return rows, [_in_folder(place, row) for row in _of(rows, split)]
    with _opened(place) as archive:
        rows = _read_index(_unpacked_index(archive, place), place)
        return rows, [_in_zip(archive, row) for row in _of(rows, split)]


def _of(rows: Iterable[IndexRow], split: str) -> Iterator[IndexRow]:
    return (row for row in rows if row["split"] == split)


@contextmanager
def _opened(place: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(place)
    except FileNotFoundError:
        raise UserError(f"dataset: there is no file {place}") from None
    except DAMAGED as error:
        raise UserError(f"{place}: not readable as a zip: {one_line(error)}") from None
    with archive:
        yield archive


def _unpacked_index(archive: zipfile.ZipFile, place: Path) -> bytes:
    if INDEX_FILE not in archive.namelist():
        raise UserError(f"{place}: it holds no {INDEX_FILE} at its top; pack the files of the folder, not the folder")
    if archive.getinfo(INDEX_FILE).file_size > MOST_INDEX:
        raise UserError(f"{place}: {INDEX_FILE} is larger than {MOST_INDEX / 1e6:.0f} MB")
    try:
        return archive.read(INDEX_FILE)
    except DAMAGED as error:
        raise UserError(f"{place}: {INDEX_FILE} cannot be read from it: {one_line(error)}") from None


def _read_index(content: bytes, place: Path) -> list[IndexRow]:
    """The rows; every file once."""
    where = f"{place}: {INDEX_FILE}"
    reader = csv.DictReader(io.StringIO(utf8_text(content, where), newline=""), strict=True)
    try:
        found = list(reader)
    except csv.Error as error:
        raise UserError(f"{where}: not readable as a table: {error}") from None
    names = reader.fieldnames or ()
    for name in INDEX_COLUMNS:
        if list(names).count(name) != 1:
            times = "two columns" if name in names else "no column"
            raise UserError(f"{where}: there is {times} '{name}'; it has {', '.join(names) or 'none'}")
    rows, seen = [], set[str]()
    for number, row in enumerate(found, 1):
        values = {name: (row[name] or "").strip() for name in INDEX_COLUMNS}
        if not values["file"] or not values["label"] or values["split"] not in SPLITS:
            raise UserError(f"{where}, row {number}: file and label must be given, and split be train or test: {shortened(values)}")
        if (one := posixpath.normpath(values["file"])) in seen:
            raise UserError(f"{where}, row {number}: {values['file']} is listed twice; a picture has one label and one split")
        seen.add(one)
        rows.append({**values, "where": f"{where}, row {number}"})
    return rows


def _in_folder(place: Path, row: IndexRow) -> dict[str, Any]:
    file = file_inside(place, row["file"], row["where"])
    where = f"{row['where']}: {row['file']}"
    with file.open("rb") as stream:
        check_header(stream, file.stat().st_size, where)
    return {"bytes": None, "path": str(file), "where": where}


def _in_zip(archive: zipfile.ZipFile, row: IndexRow) -> dict[str, Any]:
    where = f"{row['where']}: {shortened(row['file'])}"
    try:
        with archive.open(row["file"]) as member:
            check_header(cast(BinaryIO, member), archive.getinfo(row["file"]).file_size, where)  # its size is told before it is unpacked
        return {"bytes": archive.read(row["file"]), "path": None, "where": where}
    except KeyError:
        raise UserError(f"{row['where']}: there is no file {shortened(row['file'])} in it") from None
    except UserError:
        raise
    except DAMAGED as error:
        raise UserError(f"{where} cannot be read from it: {one_line(error)}") from None
