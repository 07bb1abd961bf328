"""What a robot's camera saw in one frame, or a message that names camera, episode and frame."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vla_tune.data.pictures import look
from vla_tune.data.places import file_inside
from vla_tune.errors import UserError, one_line

if TYPE_CHECKING:
    from vla_tune.data.videos import Videos

LFS = b"version https://git-lfs"
"""What a file begins with that was cloned without git-lfs."""


def frame_name(camera: str, episode: int, frame: int) -> str:
    """What a picture is called in messages."""
    return f"{camera}, episode {episode}, frame {frame}"


def stored_picture(entry: dict[str, Any] | None, root: Path, where: str) -> tuple[Tensor, list[str]]:
    """A picture of a table, uint8 `[3, height, width]`, and what was done to it that its owner may not expect.

    Args:
        entry: as the table has it, its content or the name of a file.
        root: the dataset's folder.
        where: what the picture is called.

    Raises:
        UserError: it cannot be read, or its file is not in the dataset's folder.

    """
    content, path = (entry or {}).get("bytes"), str((entry or {}).get("path") or "")
    if content is None and not path:
        raise UserError(f"{where}: the table has no picture there")
    image, notes = look(file_inside(root, path, where) if content is None else content, where)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1), notes


def filmed_pictures(videos: Videos, file: Path, times: list[float], where: str) -> Tensor:
    """Frames of a video at these times in seconds, uint8 `[times, 3, height, width]`.

    Raises:
        UserError: one cannot be read, or the video has none at its time.

    """
    try:
        return videos.frames(file, times)
    except Exception as error:  # av raises kinds of its own, OSError, ValueError, MemoryError
        raise UserError(f"{where}: {_why(file, error)}") from None


def check_size(found: Tensor, wanted: Tensor, where: str) -> None:
    """Pictures `[..., height, width]` of one camera have one size.

    Raises:
        UserError: they have not.

    """
    if found.shape[-2:] != wanted.shape[-2:]:
        (height, width), (tall, wide) = found.shape[-2:], wanted.shape[-2:]
        raise UserError(f"{where}: {width} x {height} pixels, and the camera's first picture has {wide} x {tall}; bring all to one size")


def _why(file: Path, error: Exception) -> str:
    """What is wrong with a video, on a line."""
    if not file.is_file():
        return f"there is no file {file}"
    with file.open("rb") as content:
        head = content.read(len(LFS))
    if head == LFS:
        return f"{file} is a pointer of git-lfs and no video; fetch it with: git lfs pull"
    return f"{file}: it is empty" if not head else f"{file}: {getattr(error, 'strerror', None) or one_line(error)}"
