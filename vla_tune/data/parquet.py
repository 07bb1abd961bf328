"""Parquet files that somebody else made: from the Hub's cache, fetched into it, or in a local folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_tune.errors import UserError
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
        UserError: none fits.

    """
    from datasets import load_dataset

    files = sorted(str(file) for file in folder.glob(pattern))
    if not files:
        raise UserError(f"{manifest.dataset}: no file fits {pattern}; looked in {folder}")
    return load_dataset("parquet", data_files=files, split="train", cache_dir=str(cache_folder() / "benchmarks"))


def column_values(table: Dataset, name: str) -> list[Any]:
    """A column, or with `a.b` the field `b` of the column `a`."""
    first, *rest = name.split(".")
    values: list[Any] = table.select_columns([first]).to_dict()[first]
    for part in rest:
        values = [None if value is None else value.get(part) for value in values]
    return values
