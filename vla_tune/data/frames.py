"""Batches of a LeRobotDataset's frames, equal to what lerobot reads and collates, but with pictures as uint8 RGB.

Depth pictures, texts and arrays are left out: no policy here reads them. What the robot measures is a vector, also where it is one number.
Numbers lie in memory: reading an action window through LeRobotDataset takes 5 ms a frame. Pictures are decoded once into memory where
they fit, else when they are read.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from vla_tune.console import progress, say
from vla_tune.data.camera import check_size, filmed_pictures, frame_name, stored_picture
from vla_tune.data.features import ACTION, OBSERVED, is_colour, is_numeric, picture_size
from vla_tune.data.instructions import instructions
from vla_tune.data.videos import Videos

if TYPE_CHECKING:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from lerobot.datasets.lerobot_dataset import LeRobotDataset


class Frames(Protocol):
    """What batches are read from.

    in_memory: whether reading costs so little that no worker helps.
    cameras: the keys of colour pictures.
    """

    in_memory: bool
    cameras: list[str]

    def batch(self, frames: list[int]) -> dict[str, Any]:
        """These frames (by the dataset's `index`) collated: tensors `[frames, ...]`, `task` a list of instructions.

        Raises:
            UserError: a picture cannot be read; camera, episode and frame are named.

        """


def open_frames(dataset: LeRobotDataset, cache_mb: int) -> Frames:
    """The frames of a dataset that was opened without image transforms; in memory where its pictures need at most `cache_mb` MB.

    A dataset may hold some episodes alone.
    """
    need = megabytes(dataset.meta, dataset.num_frames)
    fits = need is not None and need <= cache_mb
    if not fits:
        reason = "it has videos" if need is None else f"decoded it needs {need:.0f} MB, more than data.cache_mb={cache_mb}"
        say(f"reading frames from the dataset as they are needed: {reason}")
    return PlainFrames(dataset, in_memory=fits)


def megabytes(meta: LeRobotDatasetMetadata, frames: int) -> float | None:
    """What the decoded pictures of so many frames would need, in MB; None where there are videos, which are not held."""
    sizes = {key: picture_size(feature) or (0, 0) for key, feature in meta.features.items() if is_colour(feature)}
    if any(key in meta.video_keys for key in sizes):
        return None
    return float(sum(3 * height * width for height, width in sizes.values()) * frames / 1e6)


class PlainFrames:
    """Numbers in memory, pictures as uint8 RGB, all of a camera in one size.

    Args:
        dataset: opened without image transforms.
        in_memory: whether its stored pictures are decoded now.

    Raises:
        UserError: as `batch`, where they are decoded now.

    """

    def __init__(self, dataset: LeRobotDataset, *, in_memory: bool) -> None:
        reader = dataset._ensure_reader()  # noqa: SLF001 - lerobot keeps its frame windows there
        self._meta, self._root, self._table = dataset.meta, dataset.root, reader.hf_dataset
        features = dataset.meta.features
        self.cameras: list[str] = [key for key in dataset.meta.camera_keys if is_colour(features[key])]
        read = [key for key in self._table.column_names if is_numeric(features[key])]
        self._columns = {key: _as_read(key, _as_tensor(self._table.data.column(key))) for key in read}
        windows = {key: deltas for key, deltas in (reader.delta_indices or {}).items() if key in (*read, *self.cameras)}
        self._windows = {key: torch.tensor(deltas) for key, deltas in windows.items()}
        self._videos = Videos(dataset.tolerance_s)
        self._recordings: dict[tuple[str, int], tuple[Path, float]] = {}
        self._first: dict[str, Tensor] = {}
        bounds = dataset.meta.episodes
        starts, ends = (torch.tensor(bounds[key]) for key in ("dataset_from_index", "dataset_to_index"))
        episode = self._columns["episode_index"]
        self._start, self._end = starts[episode], ends[episode]
        # Of a dataset with some of its episodes alone, the rows of the table are fewer than the frames.
        self._first_row = self._columns["index"] - torch.arange(len(episode)) if dataset.episodes is not None else None
        self._tasks = instructions(dataset.meta)
        self.in_memory = in_memory
        self._decoded = {key: self._decode(key) for key in self.cameras} if in_memory else {}

    def batch(self, frames: list[int]) -> dict[str, Any]:
        wanted = torch.tensor(frames)
        rows = wanted if self._first_row is None else torch.searchsorted(self._columns["index"], wanted)
        batch = {key: column[rows] for key, column in self._columns.items() if key not in self._windows}
        windows = {}
        for key, deltas in self._windows.items():
            around, start, end = wanted[:, None] + deltas, self._start[rows, None], self._end[rows, None]
            batch[f"{key}_is_pad"] = (around < start) | (around >= end)
            inside = torch.minimum(torch.maximum(around, start), end - 1)
            windows[key] = inside if self._first_row is None else inside - self._first_row[rows, None]
            if key in self._columns:
                batch[key] = self._columns[key][windows[key]]
        filmed = [key for key in self.cameras if key in self._meta.video_keys]
        for key in self.cameras:
            if key not in filmed:
                batch[key] = self._stored(key, windows.get(key, rows))
        batch |= self._filmed({key: windows.get(key, rows[:, None]) for key in filmed})
        return {**batch, "task": [self._tasks[number] for number in batch["task_index"].tolist()]}

    def _stored(self, key: str, rows: Tensor) -> Tensor:
        """Pictures that lie in the table."""
        if key in self._decoded:
            return self._decoded[key][rows]
        pictures = torch.stack([self._picture(key, row) for row in rows.flatten().tolist()])
        return pictures.reshape(*rows.shape, *pictures.shape[1:])

    def _picture(self, key: str, row: int) -> Tensor:
        """A stored picture, `[3, height, width]`."""
        where = self._where(key, row)
        picture, _ = stored_picture(self._table.data.column(key)[row].as_py(), self._root, where)
        check_size(picture, self._first.setdefault(key, picture) if row == 0 else self._first_picture(key), where)
        return picture

    def _first_picture(self, key: str) -> Tensor:
        """The camera's first one, whose size the others must have."""
        if key not in self._first:
            row = torch.zeros(1, dtype=torch.long)
            self._first[key] = self._film(key, row[None])[0] if key in self._meta.video_keys else self._picture(key, 0)
        return self._first[key]

    def _where(self, key: str, row: int) -> str:
        return frame_name(key, int(self._columns["episode_index"][row]), int(self._columns["frame_index"][row]))

    def _decode(self, key: str) -> Tensor:
        """All stored pictures of a camera."""
        count = len(self._table)
        pictures = torch.empty((count, *self._first_picture(key).shape), dtype=torch.uint8)
        with progress(f"decoding {key}", count, "frames") as counter:
            for row in range(count):
                pictures[row] = self._picture(key, row)
                counter.advance()
        return pictures

    def _filmed(self, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
        """Pictures of videos; several cameras are decoded at once, as decoding leaves the interpreter free."""
        if len(wanted) < 2:
            return {key: self._film(key, rows) for key, rows in wanted.items()}
        with ThreadPoolExecutor(len(wanted)) as pool:
            return dict(zip(wanted, pool.map(self._film, wanted.keys(), wanted.values()), strict=True))

    def _film(self, key: str, rows: Tensor) -> Tensor:
        """One camera's pictures at `[batch, times]` rows, `[batch, channels, height, width]` where there is one time."""
        pictures = []
        for own in rows:
            file, began = self._recording(key, int(self._columns["episode_index"][own[0]]))
            times = [began + time for time in self._columns["timestamp"][own].tolist()]
            where = self._where(key, int(own[0]))
            found = filmed_pictures(self._videos, file, times, where)
            check_size(found, self._first.setdefault(key, found[0]) if int(own[0]) == 0 else self._first_picture(key), where)
            pictures.append(found.squeeze(0))
        return torch.stack(pictures)

    def _recording(self, key: str, episode: int) -> tuple[Path, float]:
        """The file of an episode's video and when it begins there, in seconds."""
        if (key, episode) not in self._recordings:  # a look into lerobot's table takes a millisecond
            began = self._meta.episodes[episode][f"videos/{key}/from_timestamp"]
            self._recordings[key, episode] = self._root / self._meta.get_video_file_path(episode, key), began
        return self._recordings[key, episode]


def _as_read(key: str, column: Tensor) -> Tensor:
    """What a robot measured or did: vectors of floats, for lerobot's processors bring statistics to the type of what they scale."""
    if not key.startswith((OBSERVED, ACTION)):
        return column
    return (column if column.ndim > 1 else column[:, None]).float()


def _as_tensor(column: Any) -> Tensor:
    """A column of numbers or of vectors, typed as lerobot types it: float32, int64 or bool."""
    import pyarrow

    parts = column.combine_chunks()
    parts = parts.combine_chunks() if isinstance(parts, pyarrow.ChunkedArray) else parts
    values = parts.flatten() if hasattr(parts, "flatten") and pyarrow.types.is_nested(parts.type) else parts
    if parts.null_count or values.null_count:
        raise ValueError("a column of the dataset has empty entries")
    numbers = torch.from_numpy(values.to_numpy(zero_copy_only=False).copy())
    numbers = numbers if numbers.dtype == torch.bool else numbers.float() if numbers.is_floating_point() else numbers.long()
    return numbers.reshape(len(parts), -1) if values is not parts else numbers
