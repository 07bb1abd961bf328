"""Drawn scenes of coloured shapes: the pictures of the demo's VQA.

A scene is a handful of objects with a shape, a colour, a size and a place, on a plain background. Everything
follows from one seed sequence, so a picture can be drawn again anywhere from its three integers.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

GENERATOR_VERSION = 1
IMAGE_SIZE = 64
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 230),
    "yellow": (240, 220, 50),
    "purple": (150, 50, 190),
    "orange": (245, 140, 30),
}
RADIUS = {"small": 4.5, "large": 8.0}
MAX_OBJECTS = 5
MIN_DISTANCE = 17.0
QUESTION_TYPES = ("count", "count_attribute", "colour", "shape", "existence", "relation")
STYLES = ("plain", "noise")
NOISE = 20.0
"""The deviation of a noisy camera's pixels, of 255."""
SPLITS = {"train": 0, "anchor": 1, "test": 2}
_SUPERSAMPLE = 4


@dataclass(frozen=True)
class Object:
    """One drawn object; `x` and `y` are the centre in pixels, the origin at the top left."""

    shape: str
    colour: str
    size: str
    x: float
    y: float


@dataclass(frozen=True)
class Scene:
    """Objects on a background of one RGB colour, sorted from left to right."""

    objects: tuple[Object, ...]
    background: tuple[int, int, int]

    def draw(self) -> Image.Image:
        """The picture, RGB, `IMAGE_SIZE` on a side."""
        scale = _SUPERSAMPLE
        canvas = Image.new("RGB", (IMAGE_SIZE * scale, IMAGE_SIZE * scale), self.background)
        pen = ImageDraw.Draw(canvas)
        for item in self.objects:
            _draw_object(pen, item, scale)
        return canvas.reduce(scale)


def sample_scene(seed: int, split: str, index: int) -> Scene:
    """The scene number `index` of a split; splits never share a random stream."""
    rng = np.random.default_rng([seed, SPLITS[split], index])
    count = int(rng.integers(1, MAX_OBJECTS + 1))
    places = _sample_places(rng, count)
    objects = tuple(
        Object(
            shape=SHAPES[rng.integers(len(SHAPES))],
            colour=list(COLOURS)[rng.integers(len(COLOURS))],
            size=("small", "large")[rng.integers(2)],
            x=x,
            y=y,
        )
        for x, y in sorted(places)
    )
    grey = int(rng.integers(10, 70))
    tint = rng.integers(-8, 9, size=3)
    red, green, blue = (int(grey + t) for t in tint)
    return Scene(objects, (red, green, blue))


def noisy(picture: Image.Image, seed: int, split: str, index: int) -> Image.Image:
    """As a cheap camera shows it in the dark: independent noise on every pixel and channel."""
    noise = np.random.default_rng([seed, SPLITS[split], index, 1]).normal(0, NOISE, (IMAGE_SIZE, IMAGE_SIZE, 3))
    return Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).round().astype(np.uint8))


def picture_hash(picture: Image.Image) -> str:
    """Content hash of the pixels (not of a file): what splits are kept disjoint by."""
    return hashlib.sha256(picture.tobytes()).hexdigest()


def _sample_places(rng: np.random.Generator, count: int) -> list[tuple[float, float]]:
    """`count` centres at least `MIN_DISTANCE` apart, by rejection."""
    margin = RADIUS["large"] + 1
    while True:
        places: list[tuple[float, float]] = []
        for _ in range(40):
            x, y = rng.uniform(margin, IMAGE_SIZE - margin, size=2)
            if all(math.hypot(x - px, y - py) >= MIN_DISTANCE for px, py in places):
                places.append((float(x), float(y)))
            if len(places) == count:
                return places


def _draw_object(pen: ImageDraw.ImageDraw, item: Object, scale: int) -> None:
    radius = RADIUS[item.size] * scale
    x, y = item.x * scale, item.y * scale
    fill = COLOURS[item.colour]
    box = (x - radius, y - radius, x + radius, y + radius)
    if item.shape == "circle":
        pen.ellipse(box, fill=fill)
    elif item.shape == "square":
        pen.rectangle((x - 0.88 * radius, y - 0.88 * radius, x + 0.88 * radius, y + 0.88 * radius), fill=fill)
    elif item.shape == "triangle":
        pen.polygon(((x, y - radius), (x - radius, y + 0.8 * radius), (x + radius, y + 0.8 * radius)), fill=fill)
    else:
        bar = 0.32 * radius
        pen.rectangle((x - radius, y - bar, x + radius, y + bar), fill=fill)
        pen.rectangle((x - bar, y - radius, x + bar, y + radius), fill=fill)
