"""Drawn pictures with a label each: what the demo's CLIP was trained on, and the classification tasks that need no download.

Five families: digits, letters, shapes, textures and road signs. Everything follows from a seed sequence, so a picture can be
drawn again from its family, split and number.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from vla_tune.data.scenes import SPLITS

DRAWINGS_VERSION = 1
SIZE = 48
"""Of a picture's sides, in pixels."""
_CANVAS = 96
DIGITS = tuple("0123456789")
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
SHAPES = ("circle", "square", "triangle", "cross", "star", "diamond", "ring", "hexagon")
TEXTURES = (
    "striped",
    "dotted",
    "chequered",
    "grid",
    "zigzag",
    "wavy",
    "bubbly",
    "blotchy",
    "cracked",
    "crosshatched",
    "concentric",
    "speckled",
)
SIGNS = (
    "turn left",
    "turn right",
    "go straight",
    "speed limit 20",
    "speed limit 30",
    "speed limit 50",
    "speed limit 80",
    "no entry",
    "general caution",
    "no vehicles",
)
FAMILIES = {"digits": DIGITS, "letters": LETTERS, "shapes": SHAPES, "textures": TEXTURES, "signs": SIGNS}
"""The labels of each family."""
TEMPLATES = {
    "digits": "a picture of the number {}.",
    "letters": "a picture of the letter {}.",
    "shapes": "a picture of a {}.",
    "textures": "a picture of a {} texture.",
    "signs": "a picture of a road sign: {}.",
}
"""What a picture of each family says, the label filled in."""
_FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSansMono", "STIXGeneral")

type _Colour = tuple[int, int, int]


def drawing(family: str, label: str, seed: int, split: str, number: int) -> Image.Image:
    """Picture `number` of a label, RGB, `SIZE` on a side; splits never share a random stream."""
    place = [list(FAMILIES).index(family), FAMILIES[family].index(label)]
    rng = np.random.default_rng([seed, SPLITS[split], DRAWINGS_VERSION, *place, number])
    return _photographed(_PAINTERS[family](label, rng).resize((SIZE, SIZE), Image.Resampling.BOX), rng)


def _photographed(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Out of focus, dim or grainy, by chance."""
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.9))))
    pixels = np.asarray(picture).astype(np.float64) * rng.uniform(0.75, 1.1) + rng.normal(0, rng.uniform(0, 14), (SIZE, SIZE, 3))
    if rng.random() < 0.25:
        pixels = pixels.mean(axis=2, keepdims=True).repeat(3, axis=2)
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


def _colour(rng: np.random.Generator, low: int = 0, high: int = 256) -> _Colour:
    red, green, blue = (int(value) for value in rng.integers(low, high, 3))
    return red, green, blue


def _two_colours(rng: np.random.Generator) -> tuple[_Colour, _Colour]:
    """That can be told apart, in grey too."""
    while True:
        one, other = _colour(rng), _colour(rng)
        if abs(sum(one) - sum(other)) > 200:
            return one, other


def _ground(rng: np.random.Generator, colour: _Colour) -> Image.Image:
    """Plain, shaded from one side to the other, or black."""
    kind = rng.random()
    if kind < 0.2:
        return Image.new("RGB", (_CANVAS, _CANVAS), (0, 0, 0) if sum(colour) < 384 else (255, 255, 255))
    if kind < 0.6:
        return Image.new("RGB", (_CANVAS, _CANVAS), colour)
    shade = Image.linear_gradient("L").resize((_CANVAS, _CANVAS)).rotate(90 * int(rng.integers(4)))
    dark = tuple(int(0.6 * value) for value in colour)
    return Image.composite(Image.new("RGB", shade.size, colour), Image.new("RGB", shade.size, dark), shade)


@functools.lru_cache(maxsize=64)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)


def _glyph(text: str, rng: np.random.Generator) -> Image.Image:
    """The mask of a text in some type and weight, a little turned, sheared and out of place."""
    mask = Image.new("L", (_CANVAS, _CANVAS))
    font = _font(_FONTS[rng.integers(len(_FONTS))], int(rng.integers(52, 84)))
    ImageDraw.Draw(mask).text((_CANVAS / 2, _CANVAS / 2), text, fill=255, font=font, anchor="mm", stroke_width=int(rng.integers(0, 5)))
    shear, middle = float(rng.uniform(-0.25, 0.25)), _CANVAS / 2
    mask = mask.transform(mask.size, Image.Transform.AFFINE, (1, shear, -shear * middle, 0, 1, 0), Image.Resampling.BILINEAR)
    x, y = (int(value) for value in rng.integers(-8, 9, 2))
    return mask.rotate(float(rng.uniform(-15, 15)), Image.Resampling.BILINEAR, translate=(x, y))


def _paint_text(label: str, rng: np.random.Generator) -> Image.Image:
    ink, paper = _two_colours(rng)
    text = label.upper() if rng.random() < 0.5 else label
    return Image.composite(Image.new("RGB", (_CANVAS, _CANVAS), ink), _ground(rng, paper), _glyph(text, rng))


def _polygon(count: int, radius: float, turn: float, inner: float = 1.0) -> list[tuple[float, float]]:
    """The corners of a regular polygon, every second one at `inner` times the radius."""
    reach = [radius * (inner if number % 2 else 1.0) for number in range(count)]
    angles = [turn + 2 * math.pi * number / count for number in range(count)]
    return [(_CANVAS / 2 + r * math.sin(a), _CANVAS / 2 - r * math.cos(a)) for r, a in zip(reach, angles, strict=True)]


def _shape_mask(label: str, radius: float, turn: float) -> Image.Image:
    mask = Image.new("L", (_CANVAS, _CANVAS))
    pen, middle = ImageDraw.Draw(mask), _CANVAS / 2
    box = (middle - radius, middle - radius, middle + radius, middle + radius)
    if label == "circle":
        pen.ellipse(box, fill=255)
    elif label == "ring":
        pen.ellipse(box, outline=255, width=int(0.35 * radius))
    elif label == "cross":
        for angle in (turn, turn + math.pi / 2):
            x, y = radius * math.sin(angle), radius * math.cos(angle)
            pen.line((middle - x, middle - y, middle + x, middle + y), fill=255, width=int(0.55 * radius))
    else:
        corners = {
            "square": _polygon(4, 1.2 * radius, math.pi / 4 + turn),
            "triangle": _polygon(3, 1.1 * radius, turn),
            "star": _polygon(10, 1.1 * radius, turn, 0.45),
            "diamond": _polygon(4, 1.2 * radius, turn, 0.55),
            "hexagon": _polygon(6, radius, turn),
        }
        pen.polygon(corners[label], fill=255)
    return mask


def _paint_shape(label: str, rng: np.random.Generator) -> Image.Image:
    ink, paper = _two_colours(rng)
    mask = _shape_mask(label, float(rng.uniform(18, 38)), float(rng.uniform(-0.3, 0.3)))
    x, y = (int(value) for value in rng.integers(-8, 9, 2))
    return Image.composite(Image.new("RGB", mask.size, ink), _ground(rng, paper), ImageChops.offset(mask, x, y))


def _paint_sign(label: str, rng: np.random.Generator) -> Image.Image:
    """A disc or a triangle in the colours of the road, a glyph in its middle, before some wall."""
    red, blue, white, black = (190, 30, 40), (30, 70, 170), (235, 235, 235), (20, 20, 20)
    ground = _paint_texture(TEXTURES[rng.integers(len(TEXTURES))], rng) if rng.random() < 0.5 else _ground(rng, _colour(rng))
    radius = float(rng.uniform(32, 44))
    plate, inside, glyph = "circle", white, black
    if label in ("turn left", "turn right", "go straight"):
        inside, glyph = blue, white
    elif label == "general caution":
        plate = "triangle"
    elif label == "no entry":
        inside, glyph = red, white
    rim = {blue: white, white: red, red: white}[inside]
    for colour, size in ((rim, radius), (inside, 0.8 * radius)):
        ground.paste(colour, mask=_shape_mask(plate, size, 0.0))
    pen, middle = ImageDraw.Draw(ground), _CANVAS / 2
    if label.startswith("speed"):
        pen.text((middle, middle), label.rsplit(maxsplit=1)[-1], fill=glyph, font=_font("DejaVuSans-Bold", int(0.75 * radius)), anchor="mm")
    elif label == "general caution":
        pen.text((middle, middle), "!", fill=glyph, font=_font("DejaVuSans-Bold", int(0.9 * radius)), anchor="mm")
    elif label == "no entry":
        pen.rectangle((middle - 0.5 * radius, middle - 0.14 * radius, middle + 0.5 * radius, middle + 0.14 * radius), fill=glyph)
    elif label != "no vehicles":
        turn = {"turn left": -math.pi / 2, "turn right": math.pi / 2, "go straight": 0.0}[label]
        x, y = 0.5 * radius * math.sin(turn), -0.5 * radius * math.cos(turn)
        pen.line((middle - x, middle - y, middle + 0.6 * x, middle + 0.6 * y), fill=glyph, width=int(0.22 * radius))
        head = [(middle + x + px - _CANVAS / 2, middle + y + py - _CANVAS / 2) for px, py in _polygon(3, 0.36 * radius, turn)]
        pen.polygon(head, fill=glyph)
    return ground.rotate(float(rng.uniform(-8, 8)), Image.Resampling.BILINEAR, fillcolor=_colour(rng, 40, 200))


def _paint_texture(label: str, rng: np.random.Generator) -> Image.Image:
    ink, paper = _two_colours(rng)
    x, y = np.meshgrid(np.arange(_CANVAS), np.arange(_CANVAS))
    turn, period = rng.uniform(0, math.pi), rng.uniform(10, 28)
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    a, b = along / period % 1, across / period % 1
    share = rng.uniform(0.3, 0.6)
    if label == "striped":
        mask = a < share
    elif label == "dotted":
        mask = np.hypot(a - 0.5, b - 0.5) < 0.25 + 0.15 * share
    elif label == "chequered":
        mask = (a < 0.5) ^ (b < 0.5)
    elif label == "grid":
        mask = (a < 0.4 * share) | (b < 0.4 * share)
    elif label == "zigzag":
        mask = ((across + period * np.abs(2 * a - 1)) / period % 1) < share
    elif label == "wavy":
        mask = ((across + 0.4 * period * np.sin(2 * math.pi * a)) / period % 1) < share
    elif label == "concentric":
        cx, cy = rng.uniform(0, _CANVAS, 2)
        mask = (np.hypot(x - cx, y - cy) / period % 1) < share
    elif label == "crosshatched":
        other = (x * np.cos(turn + 1.0) + y * np.sin(turn + 1.0)) / period % 1
        mask = (a < 0.25) | (other < 0.25)
    elif label == "blotchy":
        mask = _cloud(rng, int(rng.integers(4, 9))) > 0.5
    elif label == "speckled":
        mask = _cloud(rng, int(rng.integers(24, 49))) > 0.62
    else:
        mask = _drawn_lines(label, rng)
    return Image.fromarray(np.where(np.asarray(mask)[..., None], ink, paper).astype(np.uint8))


def _cloud(rng: np.random.Generator, cells: int) -> npt.NDArray[Any]:
    noise = Image.fromarray((255 * rng.random((cells, cells))).astype(np.uint8))
    return np.asarray(noise.resize((_CANVAS, _CANVAS), Image.Resampling.BICUBIC)) / 255


def _drawn_lines(label: str, rng: np.random.Generator) -> npt.NDArray[Any]:
    """Bubbles, or cracks that wander over the whole picture."""
    mask = Image.new("L", (_CANVAS, _CANVAS))
    pen = ImageDraw.Draw(mask)
    for _ in range(int(rng.integers(8, 22)) if label == "bubbly" else int(rng.integers(3, 7))):
        x, y = rng.uniform(0, _CANVAS, 2)
        if label == "bubbly":
            radius = rng.uniform(5, 16)
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=255, width=int(rng.integers(2, 5)))
            continue
        heading, width = rng.uniform(0, 2 * math.pi), int(rng.integers(2, 5))
        for _ in range(14):
            heading += rng.normal(0, 0.6)
            ahead = x + 9 * math.cos(heading), y + 9 * math.sin(heading)
            pen.line((x, y, *ahead), fill=255, width=width)
            x, y = ahead
    return np.asarray(mask) > 0


_PAINTERS: dict[str, Callable[[str, np.random.Generator], Image.Image]] = {
    "digits": _paint_text,
    "letters": _paint_text,
    "shapes": _paint_shape,
    "textures": _paint_texture,
    "signs": _paint_sign,
}
