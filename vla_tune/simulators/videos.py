"""Episodes as videos that a browser plays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HOLD = 15
"""How often the last frame is repeated, so that the outcome can be seen."""


def write_video(file: Path, frames: list[NDArray[np.uint8]], fps: int = 20) -> None:
    """Write RGB frames, `[height, width, 3]` of even sizes, as H.264 (yuv420p) in an MP4 whose index comes first."""
    import av

    with av.open(str(file), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "23", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        stream.thread_count = 1  # the same bytes on any number of cores
        for frame in (*frames, *[frames[-1]] * HOLD):
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
