"""A small LeRobotDataset decoded once into memory; its items equal the dataset's own.

Reading 64x64 frames with an action window through LeRobotDataset costs as much CPU as the training step.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vla_tune.console import progress

if TYPE_CHECKING:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset


class MemoryDataset(Dataset[dict[str, Any]]):
    """The frames of a LeRobotDataset without videos: pictures as uint8, the rest as it is stored.

    Args:
        dataset: a whole dataset (no episode selection, no image transforms).

    """

    def __init__(self, dataset: LeRobotDataset) -> None:
        from PIL import Image

        reader = dataset._ensure_reader()  # noqa: SLF001 - lerobot keeps its frame windows there
        self._windows: dict[str, Tensor] = {key: torch.tensor(deltas) for key, deltas in (reader.delta_indices or {}).items()}
        self._columns: dict[str, Tensor] = {}
        self._pictures: dict[str, Tensor] = {}
        frames = reader.hf_dataset
        for key in dataset.meta.image_keys:
            stored = frames.data.column(key)
            pictures = np.empty((len(frames), *_height_width_channels(dataset.meta.features[key])), dtype=np.uint8)
            with progress(f"decoding {key}", len(frames), "frames") as counter:
                for row, value in enumerate(stored):
                    pictures[row] = np.asarray(Image.open(io.BytesIO(value["bytes"].as_py())))
                    counter.advance()
            self._pictures[key] = torch.from_numpy(pictures).permute(0, 3, 1, 2)
        rest = [key for key in frames.column_names if key not in self._pictures]
        table = frames.select_columns(rest)[:]
        self._columns = {key: torch.stack(list(table[key])) for key in rest}
        bounds = dataset.meta.episodes
        starts, ends = (torch.tensor(bounds[key]) for key in ("dataset_from_index", "dataset_to_index"))
        episode = self._columns["episode_index"]
        self._start, self._end = starts[episode], ends[episode]
        self._tasks = [dataset.meta.tasks.iloc[index].name for index in self._columns["task_index"].tolist()]

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, row: int) -> dict[str, Any]:
        item: dict[str, Any] = {key: self._at(key, row) for key in (*self._pictures, *self._columns)}
        for key, deltas in self._windows.items():
            wanted = row + deltas
            start, end = self._start[row], self._end[row]
            item[f"{key}_is_pad"] = (wanted < start) | (wanted >= end)
            item[key] = self._at(key, wanted.clamp(start, end - 1))
        item["task"] = self._tasks[row]
        return item

    def _at(self, key: str, rows: int | Tensor) -> Tensor:
        return self._pictures[key][rows].float() / 255 if key in self._pictures else self._columns[key][rows]


def megabytes(dataset: LeRobotDataset) -> float | None:
    """What the decoded pictures would need, in MB; None where a dataset cannot be held (videos, depth)."""
    meta = dataset.meta
    if meta.video_keys or meta.depth_keys or dataset.episodes is not None:
        return None
    pixels = sum(int(np.prod(_height_width_channels(meta.features[key]))) for key in meta.image_keys)
    return float(pixels * meta.total_frames / 1e6)


def _height_width_channels(feature: dict[str, Any]) -> tuple[int, ...]:
    shape = tuple(feature["shape"])
    return shape if shape[-1] in (1, 3) else (*shape[1:], shape[0])
