"""Which key was meant: the dotted keys of a schema, and those of them that an unknown one is like."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from difflib import SequenceMatcher
from functools import cache
from typing import Any

from vla_tune.errors import folded

MOST_NAMED = 4
"""Keys that one message proposes."""
ALIKE, NEAR = 0.6, 0.9
"""How much two keys have in common, of 1: what is less is another word, what is more a slip of the pen."""


@cache
def hints_of(section: type) -> dict[str, Any]:
    """The types of a section's fields, by name."""
    return typing.get_type_hints(section)


def without_none(hint: Any) -> Any:
    """The type of a value that may also be null."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(option for option in typing.get_args(hint) if option is not type(None))
    return hint


def is_section(hint: Any) -> bool:
    """Whether there are keys below it."""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def is_open(hint: Any) -> bool:
    """Whether it is a mapping with names of the user's own, each with any value: somebody else's settings."""
    return typing.get_origin(hint) is dict and typing.get_args(hint)[1] is Any


@cache
def known_keys(schema: type) -> tuple[str, ...]:
    """All dotted keys of a schema, of sections too, those on the upper floors first."""
    return tuple(sorted(_keys(schema), key=lambda key: key.count(".")))


def _keys(schema: type, prefix: str = "") -> Iterator[str]:
    for name, hint in hints_of(schema).items():
        yield f"{prefix}{name}"
        if is_section(hint):
            yield from _keys(hint, f"{prefix}{name}.")


def meant(schema: type, key: str) -> list[str]:
    """The known keys that an unknown one is like, the likeliest first; none where there are none.

    A part of the key may be missing (`steps`), misspelt (`train.stesp`), in capitals, or another section's (`train.rank`).
    """
    plain = folded(key)
    ends = _ends_of(schema)
    if below := [one for one, parts in ends.items() if plain in parts]:
        return below[:MOST_NAMED]
    matcher = SequenceMatcher(None, "", plain, autojunk=False)
    scores = {one: max(_likeness(matcher, end) - 0.01 * number for number, end in enumerate(parts)) for one, parts in ends.items()}
    best = max(scores, key=scores.__getitem__)
    if scores[best] >= NEAR:
        return [best]
    last = plain.rpartition(".")[2]
    named_so = sorted((one for one, parts in ends.items() if parts[-1] == last), key=lambda one: -scores[one])
    opened = _settings(schema, key)
    if named_so or opened:
        return [*named_so[: MOST_NAMED - len(opened)], *opened]
    alike = SequenceMatcher(None, ends[best][-1], last, autojunk=False).ratio() >= ALIKE  # two keys of one section begin alike
    return [best] if scores[best] >= ALIKE and alike else []


def _settings(schema: type, key: str) -> list[str]:
    """The key below a section's mapping of settings, where the section has one: `policy.settings.chunk_size` of `policy.chunk_size`."""
    section, _, rest = key.partition(".")
    hint = hints_of(schema).get(section)
    return [f"{section}.{name}.{rest}" for name, inner in hints_of(hint).items() if is_open(inner)] if rest and is_section(hint) else []


@cache
def _ends_of(schema: type) -> dict[str, list[str]]:
    """Of every key what it may be called by: `a.b.c`, `b.c` and `c`, in lower case."""
    parts = {key: folded(key).split(".") for key in known_keys(schema)}
    return {key: [".".join(names[at:]) for at in range(len(names))] for key, names in parts.items()}


def _likeness(matcher: SequenceMatcher[str], text: str) -> float:
    """How much of two texts is the same, of 1; 0 where it is little."""
    matcher.set_seq1(text)
    return matcher.ratio() if matcher.real_quick_ratio() >= ALIKE and matcher.quick_ratio() >= ALIKE else 0.0
