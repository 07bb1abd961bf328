"""Anybody's picture as 8-bit RGB, or a message that names it: the one place where pictures of a user's are opened."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vla_tune.errors import UserError, one_line

FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")
"""What is opened. Not EPS, which Pillow would hand to another program, nor what may hold anything but a picture."""
MOST_PIXELS = 89_478_485
"""Pillow's own limit; what is larger is a decompression bomb, or no picture for a VLM."""
LARGEST_PIXEL, SLACK = 16, 4_000_000
"""Bytes: a file larger than this for each of its pixels, and this, holds something else."""
LEAST_SIDE, MOST_RATIO = 4, 200
"""Pixels; and how often the longer side may hold the shorter: processors scale the shorter one up, and the longer with it."""
DIRECT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
"""Pillow's modes of 8 bits or fewer, which have one reading as RGB."""
DARK = 1 << 14
"""The brightest value of a 16-bit picture that fewer bits were probably stored in."""


def read_rgb(source: Path | bytes, where: str) -> Image.Image:
    """A picture in 8-bit RGB, turned as its EXIF data say.

    Transparent parts are shown on white, 16 bits scaled to 8, and of an animation its first frame is taken.

    Args:
        source: a file, or the content of one.
        where: what the picture is called in messages.

    Raises:
        UserError: it is no picture, damaged, too large, or of a kind that has no one reading in 8 bits.

    """
    return look(source, where)[0]


def look(source: Path | bytes, where: str) -> tuple[Image.Image, list[str]]:
    """As `read_rgb`, and what was done to the picture that its owner may not expect."""
    try:
        with _stream(source) as stream:
            check_header(stream, _size(stream), where)
            with Image.open(stream, formats=FORMATS) as image:
                return _as_rgb(image, where)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error and more
        raise UserError(f"{where}: the picture is damaged ({one_line(error)})") from None


def check_header(stream: BinaryIO, size: int, where: str) -> None:
    """That the first bytes of a file of this `size` are a picture's, and both sizes are sound; nothing is unpacked.

    Raises:
        UserError: they are not.

    """
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MOST_PIXELS says it
    try:
        image = Image.open(stream, formats=FORMATS)  # not closed: the stream is the caller's
        width, height = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{where}: the picture is too large to be one: {one_line(error)}") from None
    except UnidentifiedImageError:
        kind = "an empty file" if not size else "no picture that can be read; save it as PNG or JPEG"
        raise UserError(f"{where}: {kind}") from None
    except Exception as error:  # see `look`
        raise UserError(f"{where}: the picture is damaged ({one_line(error)})") from None
    if width * height > MOST_PIXELS:
        raise UserError(f"{where}: {width} x {height} pixels are too many (at most {MOST_PIXELS:,}); make the picture smaller")
    if min(width, height) < LEAST_SIDE or max(width, height) > MOST_RATIO * min(width, height):
        raise UserError(f"{where}: {width} x {height} pixels are no picture that a model can look at")
    if size > LARGEST_PIXEL * width * height + SLACK:
        raise UserError(f"{where}: {size / 1e6:,.0f} MB for {width} x {height} pixels: the file holds more than a picture")


def _stream(source: Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _size(stream: BinaryIO) -> int:
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    return size


def _as_rgb(image: Image.Image, where: str) -> tuple[Image.Image, list[str]]:
    notes = []
    if getattr(image, "is_animated", False) and image.format != "MPO":  # a phone's MPO holds the same picture again
        notes.append("is animated: its first frame is taken")
        image.seek(0)
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # Pillow opens PGM's 16 bits as 32
        values = np.asarray(image)
        if values.max() < DARK:
            notes.append(f"has 16 bits and is at most {values.max()} of 65,535 bright: it is read as nearly black")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB"), notes
    if image.mode not in DIRECT:
        raise UserError(f"{where}: a picture of mode '{image.mode}' has no one reading in 8 bits; save it as 8-bit PNG")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getextrema()[3] != (255, 255):
            notes.append("has transparent parts: they are shown on white")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB"), notes
