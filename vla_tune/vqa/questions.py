"""Questions about drawn scenes, with one right answer each and balanced answers within each type."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vla_tune.data.scenes import COLOURS, GENERATOR_VERSION, SHAPES, Object, Scene, sample_scene
from vla_tune.vqa.generator import Generator, Placed, Question

RELATION_MARGIN = 8.0
"""Two objects must differ by this many pixels along the axis that a relation asks about."""
ANSWERS = {
    "count": ("1", "2", "3", "4", "5"),
    "count_attribute": ("0", "1", "2", "3"),
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "existence": ("yes", "no"),
    "relation": ("yes", "no"),
}
"""By question type, the answers that a set of questions has in equal numbers."""


def ask(scene: Scene, kind: str, rng: np.random.Generator) -> Question | None:
    """A random question of one type about the scene; None where the scene does not allow one.

    An answer is drawn first wherever the scene allows several, so that no answer of a type is much more likely
    than the others; `vla_tune.vqa.dataset` evens out what is left.
    """
    return _QUESTIONS[kind](scene, rng)


def caption(scene: Scene) -> str:
    """Every object from left to right, for dense supervision while the demo VLM is trained."""
    return ", ".join(f"{item.size} {item.colour} {item.shape}" for item in scene.objects) + "."


def _count(scene: Scene, rng: np.random.Generator) -> Question:
    text = ("how many objects are there?", "count the objects.")[rng.integers(2)]
    return Question("count", text, str(len(scene.objects)))


def _count_attribute(scene: Scene, rng: np.random.Generator) -> Question:
    attribute = ("colour", "shape", "size")[rng.integers(3)]
    values = {"colour": tuple(COLOURS), "shape": SHAPES, "size": ("small", "large")}[attribute]
    by_count: dict[int, list[str]] = {}
    for value in values:
        by_count.setdefault(sum(getattr(item, attribute) == value for item in scene.objects), []).append(value)
    counts = sorted(by_count)
    number = counts[rng.integers(len(counts))]
    value = by_count[number][rng.integers(len(by_count[number]))]
    noun = _plural(value) if attribute == "shape" else f"{value} objects"
    return Question("count_attribute", f"how many {noun} are there?", str(number))


def _colour(scene: Scene, rng: np.random.Generator) -> Question | None:
    item = _pick(_unique(scene, lambda o: o.shape), rng)
    if item is not None and rng.integers(2):
        return Question("colour", f"what color is the {item.shape}?", item.colour)
    item = _pick(_unique(scene, lambda o: (o.size, o.shape)), rng)
    return Question("colour", f"what color is the {item.size} {item.shape}?", item.colour) if item else None


def _shape(scene: Scene, rng: np.random.Generator) -> Question | None:
    item = _pick(_unique(scene, lambda o: o.colour), rng)
    if item is not None and rng.integers(2):
        return Question("shape", f"what shape is the {item.colour} object?", item.shape)
    item = _pick(_unique(scene, lambda o: (o.size, o.colour)), rng)
    return Question("shape", f"what shape is the {item.size} {item.colour} object?", item.shape) if item else None


def _existence(scene: Scene, rng: np.random.Generator) -> Question:
    present = {(item.colour, item.shape) for item in scene.objects}
    if rng.integers(2):
        colour, shape = sorted(present)[rng.integers(len(present))]
        answer = "yes"
    else:
        # A near miss shares its colour or its shape with an object in the picture; seeing one attribute is no answer.
        absent = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in present]
        near = [(c, s) for c, s in absent if any(c == pc or s == ps for pc, ps in present)]
        pool = near if rng.integers(4) else absent
        colour, shape = pool[rng.integers(len(pool))]
        answer = "no"
    article = "an" if colour[0] in "aeiou" else "a"
    return Question("existence", f"is there {article} {colour} {shape}?", answer)


def _relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    items = _unique(scene, lambda o: (o.colour, o.shape))
    return relation(items, lambda item: f"the {item.colour} {item.shape}", RELATION_MARGIN, rng)


def relation[P: Placed](items: Sequence[P], name: Callable[[P], str], margin: float, rng: np.random.Generator) -> Question | None:
    """Whether of two things one lies left of, right of, above or below the other; None where none are `margin` pixels apart on an axis."""
    pairs = [(a, b, axis) for a in items for b in items for axis in ("x", "y") if getattr(b, axis) - getattr(a, axis) >= margin]
    if not pairs:
        return None
    first, second, axis = pairs[rng.integers(len(pairs))]  # first is left of, or above, second
    words = {"x": ("left of", "right of"), "y": ("above", "below")}[axis]
    if rng.integers(2):
        first, second, words = second, first, words[::-1]
    truth = int(rng.integers(2))
    return Question("relation", f"is {name(first)} {words[1 - truth]} {name(second)}?", ("no", "yes")[truth])


_QUESTIONS: dict[str, Callable[[Scene, np.random.Generator], Question | None]] = {
    "count": _count,
    "count_attribute": _count_attribute,
    "colour": _colour,
    "shape": _shape,
    "existence": _existence,
    "relation": _relation,
}


def _plural(word: str) -> str:
    return f"{word}es" if word.endswith("s") else f"{word}s"


def _unique(scene: Scene, key: Callable[[Object], object]) -> list[Object]:
    keys = [key(item) for item in scene.objects]
    return [item for item, k in zip(scene.objects, keys, strict=True) if keys.count(k) == 1]


def _pick(items: list[Object], rng: np.random.Generator) -> Object | None:
    return items[rng.integers(len(items))] if items else None


GENERATOR = Generator(sample_scene, ask, ANSWERS, scenes=5000, version=GENERATOR_VERSION)
