"""A sample of a dataset's pictures, opened as training opens them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vla_tune.data.camera import check_size, filmed_pictures, frame_name, stored_picture
from vla_tune.data.features import picture_size
from vla_tune.data.videos import Videos
from vla_tune.errors import UserError
from vla_tune.preflight.cameras import colour_cameras
from vla_tune.preflight.findings import Finding, stop, tell

if TYPE_CHECKING:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from torch import Tensor

FRAMES, LEAST = 48, 4
"""How many frames are opened of all cameras together, and of each at least."""
TOLERANCE_S = 1e-4
"""lerobot's: how far a video's frame may be from the time that the table has."""


@dataclass(frozen=True)
class Row:
    """A frame's place: in its dataset, and in the file of the table that holds it."""

    episode: int
    frame: int
    time: float
    file: Path
    row: int


def pictures(meta: LeRobotDatasetMetadata, episodes: Sequence[int]) -> Iterator[Finding]:
    """Look at some frames of each camera, spread over these episodes: damage, sizes, and what is read otherwise than stored."""
    known = [key for key in colour_cameras(meta.features) if picture_size(meta.features[key])]
    rows = sample(meta, episodes, max(LEAST, FRAMES // max(1, len(known))))
    videos = Videos(TOLERANCE_S)
    for camera in known if rows else ():
        yield from _camera(meta, camera, rows, videos)


def sample(meta: LeRobotDatasetMetadata, episodes: Sequence[int], count: int) -> list[Row]:
    """About `count` frames of episodes spread evenly, the last of each among them: there a file ends that was cut.

    With them the frames of the same files whose times are the furthest from the dataset's rate.
    """
    few = min(len(episodes), -(-count // 2))
    each = count // few
    found: dict[Row, None] = {}
    numbers = functools.cache(_numbers)
    for number in range(few):
        episode = episodes[number * (len(episodes) - 1) // max(1, few - 1)]
        file = Path(meta.root) / meta.get_data_file_path(episode)
        columns = numbers(file)
        rows = np.flatnonzero(columns["episode_index"] == episode) if columns else np.array([], int)
        if columns and len(rows):
            off = np.abs(columns["timestamp"] - columns["frame_index"] / meta.fps) * np.isin(columns["episode_index"], episodes)
            worst = [int(off.argmax())] if meta.video_keys and off.max() > TOLERANCE_S else []
            ends = (number + 1 + few * np.arange(each)) * len(rows) // (few * each)  # other places in each episode
            found |= dict.fromkeys(_row(columns, file, one) for one in (*worst, *rows[ends[:-1]], rows[-1]))
    return list(found)


def _numbers(file: Path) -> dict[str, NDArray[Any]] | None:
    """Which frames a file of the table holds; None where it cannot be read, which opening the dataset tells."""
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file, columns=["episode_index", "frame_index", "timestamp"])
        return {key: table[key].to_numpy() for key in table.column_names}
    except Exception:  # as above; pyarrow raises many kinds
        return None


def _row(columns: dict[str, NDArray[Any]], file: Path, row: int) -> Row:
    row = int(row)
    episode, frame, time = (columns[key][row] for key in ("episode_index", "frame_index", "timestamp"))
    return Row(int(episode), int(frame), float(time), file, row)


def _camera(meta: LeRobotDatasetMetadata, camera: str, rows: list[Row], videos: Videos) -> Iterator[Finding]:
    """Up to the first picture that cannot be trained on."""
    if camera in meta.video_keys and f"videos/{camera}/from_timestamp" not in meta.episodes.column_names:
        yield stop(f"{camera}: meta/episodes does not say which files its videos are in; is it complete?")
        return
    first: Tensor | None = None
    told: list[str] = []
    for row in rows:
        where = frame_name(camera, row.episode, row.frame)
        try:
            if camera in meta.video_keys:
                began = float(meta.episodes[row.episode][f"videos/{camera}/from_timestamp"])
                file = Path(meta.root) / meta.get_video_file_path(row.episode, camera)
                picture, notes = filmed_pictures(videos, file, [began + row.time], where)[0], list[str]()
            else:
                picture, notes = stored_picture(_entry(row.file, camera, row.row), Path(meta.root), where)
            check_size(picture, picture if first is None else first, where)
        except UserError as error:
            yield stop(f"{error}" if camera in meta.video_keys else f"{error}; data.episodes can leave the episode out")
            return
        first = picture if first is None else first
        told += [f"{where} {note}" for note in notes]
    if told:
        yield tell(told[0] + (f" (and {len(told) - 1} more of {len(rows)} that were looked at)" if len(told) > 1 else ""))
    declared = picture_size(meta.features[camera])
    if first is not None and declared != tuple(first.shape[-2:]):
        (height, width), (tall, wide) = first.shape[-2:], declared or (0, 0)
        yield tell(f"{camera}: its pictures have {width} x {height} pixels, meta/info.json says {wide} x {tall}; they are read as they are")


def _entry(file: Path, key: str, row: int) -> dict[str, Any] | None:
    """A cell of a file of the table, without reading all of it."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as table:
        if key not in table.schema_arrow.names:
            return None
        for group in range(table.num_row_groups):
            size = table.metadata.row_group(group).num_rows
            if row < size:
                for part in table.iter_batches(64, row_groups=[group], columns=[key]):
                    if row < len(part):
                        entry: dict[str, Any] | None = part.column(0)[row].as_py()
                        return entry
                    row -= len(part)
            row -= size
    return None
