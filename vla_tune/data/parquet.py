"""Parquet files that somebody else made: from the Hub's cache, fetched into it, or in a local folder."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_tune.data.places import file_inside
from vla_tune.errors import UserError, is_full_disk, one_line
from vla_tune.resources import cache_folder

if TYPE_CHECKING:
    from datasets import Dataset

    from vla_tune.data.manifests import BenchmarkManifest, LabelledManifest


def fetched_folder(manifest: BenchmarkManifest | LabelledManifest, patterns: list[str]) -> Path:
    """The folder that holds the files, from the Hub's cache or fetched into it where the data set is no local folder.

    Raises:
        UserError: they are neither here nor can be fetched.

    """
    local = Path(manifest.dataset).expanduser()
    if local.is_dir():
        return local
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(manifest.dataset, repo_type="dataset", revision=manifest.revision, allow_patterns=patterns))
    except Exception as error:  # the Hub and the network raise many kinds
        raise UserError(
            f"dataset: {manifest.dataset} is not in the Hub's cache and cannot be fetched ({type(error).__name__}); connect this machine "
            f"once ({manifest.download_mb} MB), or put {', '.join(dict.fromkeys(patterns))} into a folder and name that in a manifest"
        ) from None


def parquet_table(folder: Path, pattern: str, manifest: BenchmarkManifest | LabelledManifest) -> Dataset:
    """The rows of all files that fit, in the order of the files' names.

    Raises:
        UserError: none fits, one cannot be read, or their columns differ.

    """
    from datasets import load_dataset

    files = sorted(str(file) for file in folder.glob(pattern) if not file.is_dir())
    if not files:
        raise UserError(f"{manifest.dataset}: no file fits {pattern}; looked in {folder}")
    for file in files:
        file_inside(folder, str(Path(file).relative_to(folder)), manifest.dataset)
    _check_files(files)
    escaped = [glob.escape(file) for file in files]  # a folder's name may hold brackets
    try:
        return load_dataset("parquet", data_files=escaped, split="train", cache_dir=str(cache_folder() / "benchmarks"))
    except Exception as error:  # pyarrow's and datasets' own
        if is_full_disk(error) or is_full_disk(error.__cause__ or error):
            raise
        raise UserError(f"{manifest.dataset}: {pattern} cannot be read ({one_line(error.__cause__ or error)})") from None


def _check_files(files: list[str]) -> None:
    """That every file is one of Parquet, and has the columns of the first."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    first: tuple[str, Any] | None = None
    for file in files:
        try:
            schema = pq.read_schema(file)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{file}: not readable as Parquet ({one_line(error)})") from None
        first = first or (file, schema)
        other = next((name for name in {*schema.names, *first[1].names} if _kind(schema, name) != _kind(first[1], name)), None)
        if other is not None:
            raise UserError(f"{file}: column '{other}' is {_kind(schema, other)}, in {first[0]} it is {_kind(first[1], other)}")


def _kind(schema: Any, name: str) -> str:
    return str(schema.field(name).type) if name in schema.names else "missing"


def column_values(table: Dataset, name: str) -> list[Any]:
    """A column, or with `a.b` the field `b` of the column `a`."""
    first, *rest = [name] if name in table.column_names else name.split(".")
    values: list[Any] = table.select_columns([first]).to_dict()[first]
    for part in rest:
        values = [None if value is None else value.get(part) for value in values]
    return values
