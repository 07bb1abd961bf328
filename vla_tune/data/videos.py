"""Frames of videos at given times, equal to those of lerobot's pyav decoder, from files that stay open.

lerobot's decoder opens the file, starts decoding threads and converts every decoded frame to RGB each time it is asked for one.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

MOST_OPEN = 32
"""Files that a process keeps open."""


class Videos:
    """Open video files, the least recently used of which are closed. A forked process opens its own.

    Args:
        tolerance_s: how far a frame's time may be from the time that is asked for.

    """

    def __init__(self, tolerance_s: float) -> None:
        self._tolerance_s = tolerance_s
        self._open: OrderedDict[Path, InputContainer] = OrderedDict()
        self._process = os.getpid()
        self._inherited: list[OrderedDict[Path, InputContainer]] = []

    def frames(self, path: Path, times: list[float]) -> Tensor:
        """The pictures at these times in seconds, uint8 `[times, channels, height, width]`.

        Raises:
            OSError, ValueError: the file is missing or damaged, or has no frame at one of the times.

        """
        decoded = self._decoded(path, min(times), max(times))
        pictures = []
        for time in times:
            nearest = min(decoded, key=lambda frame: abs(frame.time - time), default=None)
            if nearest is None or abs(nearest.time - time) >= self._tolerance_s:
                found = "nothing" if nearest is None else f"one at {nearest.time:.4f} s"
                raise ValueError(f"it has no frame at {time:.4f} s (the nearest: {found})")
            if nearest.is_corrupt:
                raise ValueError(f"its frame at {time:.4f} s is damaged")
            pictures.append(torch.from_numpy(nearest.to_ndarray(format="rgb24")).permute(2, 0, 1))
        return torch.stack(pictures)

    def _decoded(self, path: Path, first: float, last: float) -> list[VideoFrame]:
        """The frames from the keyframe before `first` to `last`."""
        container = self._container(path)
        stream = container.streams.video[0]
        assert stream.time_base is not None
        container.seek(round(first / stream.time_base) - 1, backward=True, any_frame=False, stream=stream)
        frames = []
        for frame in container.decode(stream):
            if frame.pts is None:
                continue
            frames.append(frame)
            if frame.time >= last - self._tolerance_s:
                break
        return frames

    def _container(self, path: Path) -> InputContainer:
        import av

        if self._process != os.getpid():  # a file's position is shared with the parent; its decoder is left as it is
            self._inherited.append(self._open)
            self._open, self._process = OrderedDict(), os.getpid()
        if path not in self._open:
            container = av.open(str(path))
            if not container.streams.video:
                raise ValueError("it holds no video; is it complete?")
            container.streams.video[0].codec_context.thread_count = 1  # threads delay the first frame after a jump
            self._open[path] = container
        self._open.move_to_end(path)
        container = self._open[path]
        if len(self._open) > MOST_OPEN:
            self._open.popitem(last=False)  # closed when nobody uses it any more
        return container
