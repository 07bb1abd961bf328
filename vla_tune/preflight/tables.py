"""The numbers of a dataset: whether its files are there, its tables agree, and every value is a number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_tune.errors import UserError, one_line
from vla_tune.preflight.findings import Finding, stop

if TYPE_CHECKING:
    import pyarrow
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

NUMBERS = ("float", "int", "uint", "bool")
REWRITE = "write the dataset anew with lerobot"
SLACK = 0.5
"""Of a frame: by so much may a timestamp be off."""


@dataclass(frozen=True)
class Tables:
    """All columns of numbers of a dataset, as its files have them."""

    meta: LeRobotDatasetMetadata

    @property
    def files(self) -> list[Path]:
        """Those that lerobot reads, in its order."""
        return sorted((self.meta.root / "data").glob("*/*.parquet"))

    @property
    def vectors(self) -> list[str]:
        """The features that are numbers or vectors of them."""
        return [key for key, one in self.meta.features.items() if str(one["dtype"]).startswith(NUMBERS) and len(one["shape"]) == 1]

    @cached_property
    def table(self) -> pyarrow.Table:
        """Read once.

        Raises:
            UserError: a file is damaged, or lacks a column.

        """
        import pyarrow
        import pyarrow.parquet

        parts = []
        for file in self.files:
            try:
                names = pyarrow.parquet.read_schema(file).names
                missing = [key for key in self.meta.features if key not in names and key not in self.meta.video_keys]
                if missing:
                    raise UserError(f"{file} has no column '{missing[0]}', which meta/info.json lists; {REWRITE}")
                parts.append(pyarrow.parquet.read_table(file, columns=self.vectors))
            except (OSError, pyarrow.ArrowException) as error:
                raise UserError(f"{file} cannot be read ({one_line(error)}); copy the dataset again") from None
        try:
            return pyarrow.concat_tables(parts, promote_options="permissive")
        except pyarrow.ArrowException as error:
            raise UserError(
                f"{self.meta.root / 'data'}: its files have columns of different types ({one_line(error)}); {REWRITE}"
            ) from None

    def numbers(self, key: str) -> np.ndarray[Any, Any]:
        """A column as `[frames, d]`; empty entries are NaN.

        Raises:
            UserError: its rows differ in length.

        """
        column = self.table.column(key).combine_chunks()
        if hasattr(column, "flatten") and column.type.num_fields:
            width = int(self.meta.features[key]["shape"][0])
            values = column.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
            if column.null_count or len(values) != width * len(column) or set(np.unique(_lengths(column))) - {width}:
                raise UserError(
                    f"'{key}': meta/info.json says {width} numbers a frame, and not every row in {self.meta.root / 'data'} has so many"
                )
            return values.reshape(-1, width)
        return column.to_numpy(zero_copy_only=False).astype(np.float64)[:, None]


def missing_files(meta: LeRobotDatasetMetadata) -> Iterator[Finding]:
    """Files that the metadata name, without which lerobot would ask the Hub."""
    for (chunk, number), own in _places(meta, "data").items():
        file = meta.root / meta.data_path.format(chunk_index=chunk, file_index=number)
        if not file.is_file():
            yield stop(f"{file} is missing, the numbers of {_episodes(own)}; copy it there")
    for key in meta.video_keys:
        for (chunk, number), own in _places(meta, f"videos/{key}").items():
            file = meta.root / str(meta.video_path).format(video_key=key, chunk_index=chunk, file_index=number)
            if not file.is_file():
                yield stop(f"{file} is missing, the video of camera '{key}' in {_episodes(own)}; copy it there")


def _places(meta: LeRobotDatasetMetadata, what: str) -> dict[tuple[int, int], list[int]]:
    """The episodes that each file holds, by its chunk and number."""
    columns = [f"{what}/chunk_index", f"{what}/file_index"]
    if missing := [name for name in columns if name not in meta.episodes.column_names]:
        raise UserError(f"meta/episodes of '{meta.repo_id}' has no column '{missing[0]}'; {REWRITE}")
    held: dict[tuple[int, int], list[int]] = {}
    for episode, chunk, number in zip(*(meta.episodes[name] for name in ("episode_index", *columns)), strict=True):
        held.setdefault((chunk, number), []).append(episode)
    return held


def disagreements(tables: Tables) -> Iterator[Finding]:
    """Where `meta/info.json`, `meta/episodes` and the tables count differently."""
    meta = tables.meta
    episode, frame, index = (tables.numbers(key)[:, 0] for key in ("episode_index", "frame_index", "index"))
    listed = np.asarray(meta.episodes["episode_index"])
    counted = {
        "meta/info.json": (int(meta.total_episodes), int(meta.total_frames)),
        "meta/episodes": (len(listed), int(np.sum(meta.episodes["length"]))),
        "data": (len(np.unique(episode)), len(episode)),
    }
    if len(set(counted.values())) > 1:
        told = ", ".join(f"{where}: {episodes} episodes of {frames} frames" for where, (episodes, frames) in counted.items())
        yield stop(f"the dataset '{meta.repo_id}' disagrees with itself: {told}; correct total_episodes and total_frames, or {REWRITE}")
        return
    if not np.array_equal(index, np.arange(len(index))):
        row = int(np.flatnonzero(index != np.arange(len(index)))[0])
        yield stop(
            f"column 'index' does not count the frames from 0 on: row {row} has {index[row]:g} (episode {episode[row]:g}); {REWRITE}"
        )
        return
    starts, ends = (np.asarray(meta.episodes[f"dataset_{end}_index"]) for end in ("from", "to"))
    for number, start, end in zip(listed, starts, ends, strict=True):
        own = slice(int(start), int(end))
        if end <= start or end > len(episode) or not (episode[own] == number).all():
            yield stop(
                f"meta/episodes says that episode {number} is frames {start} to {end - 1}, column 'episode_index' says otherwise; {REWRITE}"
            )
            return
        if not np.array_equal(frame[own], np.arange(end - start)):
            yield stop(f"column 'frame_index' does not count the frames of episode {number} from 0 on; {REWRITE}")
            return
    times = tables.numbers("timestamp")[:, 0]
    off = np.abs(times * meta.fps - frame) > SLACK
    if off.any():
        row = int(np.flatnonzero(off)[0])
        yield stop(
            f"meta/info.json says {meta.fps} frames a second, and frame {frame[row]:g} of episode {episode[row]:g} has the timestamp "
            f"{times[row]:g}; correct fps, or {REWRITE}"
        )


def unnamed_tasks(tables: Tables, known: dict[int, str]) -> Iterator[Finding]:
    """Frames whose `task_index` is not in the table of instructions."""
    used, first = np.unique(tables.numbers("task_index")[:, 0], return_index=True)
    episode = tables.numbers("episode_index")[:, 0]
    for number, row in zip(used, first, strict=True):
        if number not in known:
            has = ", ".join(map(str, sorted(known))) or "none"
            yield stop(
                f"meta/tasks.parquet has no task_index {number:g}, which episode {episode[row]:g} has; it has {has}: add its instruction"
            )
        elif not known[int(number)]:
            yield stop(f"the instruction of task_index {number:g} (episode {episode[row]:g}) is empty; give it in meta/tasks.parquet")


def not_numbers(tables: Tables, chosen: set[int] | None = None) -> Iterator[Finding]:
    """NaN, infinity and empty entries, in the episodes that are read."""
    episode, frame = (tables.numbers(key)[:, 0] for key in ("episode_index", "frame_index"))
    read = np.ones(len(episode), bool) if chosen is None else np.isin(episode, list(chosen))
    for key in tables.vectors:
        bad = ~np.isfinite(tables.numbers(key)) & read[:, None]
        if not bad.any():
            continue
        row, place = (int(one[0]) for one in np.nonzero(bad))
        more = int(bad.any(1).sum()) - 1
        value = tables.numbers(key)[row, place]
        where = f"'{key}'[{place}] is {value:g} in episode {episode[row]:g}, frame {frame[row]:g}"
        rest = f", and {more} more frames have such values" if more else ""
        yield stop(f"{where}{rest}; mend it, or leave the episode out with data.episodes")


def _lengths(column: Any) -> np.ndarray[Any, Any]:
    import pyarrow.compute

    return pyarrow.compute.list_value_length(column).to_numpy(zero_copy_only=False)


def _episodes(numbers: list[int]) -> str:
    return f"episode {numbers[0]}" if len(numbers) == 1 else f"episodes {min(numbers)} to {max(numbers)}"
