"""Values as a schema's types have them, and what a key's value must be where one is of another kind."""

from __future__ import annotations

import typing
from typing import Any

from vla_tune.config.keys import hints_of, is_section, known_keys, meant, without_none
from vla_tune.config.reading import Scalar
from vla_tune.errors import UserError, brief, folded, nearest

MOST_INT = 2**63 - 1
TRUE, FALSE = ("true", "yes", "on", "y", "1"), ("false", "no", "off", "n", "0")
REFERENCE = "${"
"""Text with it is OmegaConf's: the value of another key."""
_WANTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


class MisfitError(ValueError):
    """A value is of another kind; the message says what it must be."""


def fit(schema: type, hint: Any, value: Any, key: str, source: str) -> Any:
    """The value of a key in plain types: what `hint` takes, `Scalar` resolved.

    Args:
        schema: the dataclass that `key` is a dotted key of.
        hint: the type of what stands at the key.
        value: as `reading` or JSON has it.
        key: empty for the schema itself.
        source: what the value is from, a file or the command line.

    Raises:
        UserError: an unknown key, or a value of another type.

    """
    inner = without_none(hint)
    if inner is not hint and _is_null(value):
        return None
    if value_is_reference(value):
        return value
    if is_section(inner):
        return _section(schema, inner, value, key, source)
    kind, items = typing.get_origin(inner), typing.get_args(inner)
    if kind is dict and isinstance(value, dict):
        return {str(name): fit(schema, items[1], one, f"{key}.{name}", source) for name, one in value.items()}
    if kind is list and isinstance(value, list):
        return [fit(schema, items[0], one, f"{key}[{number}]", source) for number, one in enumerate(value)]
    try:
        return _plain(value) if inner is Any else _scalar(inner, value)
    except (MisfitError, ValueError, OverflowError) as error:
        wanted = str(error) if isinstance(error, MisfitError) else _WANTED[inner]
        null = " or null" if inner is not hint else ""
        null = "; a space belongs after a colon" if ":" in key and _is_null(value) else null
        raise UserError(f"{source}: {key}={brief(value)}: must be {wanted}{null}") from None


def value_is_reference(value: Any) -> bool:
    """Whether the value is another key's."""
    return isinstance(value, str) and REFERENCE in value


def unknown(schema: type, key: str, source: str) -> UserError:
    """What to say of a key that the schema lacks."""
    if close := [one for one in meant(schema, key) if one != key]:
        *first, last = (f"'{one}'" for one in close)
        return UserError(f"{source}: unknown key '{brief(key)}'; did you mean {', '.join(first)}{' or ' if first else ''}{last}?")
    parts = key.split(".")
    sections = (".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1))
    section = next((one for one in sections if one in known_keys(schema)), "")
    below = [one for one in known_keys(schema) if one.rpartition(".")[0] == section]
    return UserError(f"{source}: unknown key '{brief(key)}'; {nearest(key, below, f'{section}.')}")


def _section(schema: type, section: type, value: Any, key: str, source: str) -> dict[str, Any]:
    hints, prefix = hints_of(section), f"{key}." if key else ""
    if not isinstance(value, dict):
        raise UserError(f"{source}: {key}={brief(value)}: {_said_of_section(hints, value, key)}")
    made: dict[str, Any] = {}
    for name, one in value.items():
        at = f"{prefix}{name}"
        if name in hints:
            made[name] = fit(schema, hints[name], one, at, source)
        elif "." in name and at in known_keys(schema):
            raise UserError(f"{source}: '{at}': in a file a dot is a level: {name.replace('.', ': {')}: ...{'}' * name.count('.')}")
        elif "[" in key:
            raise UserError(f"{source}: unknown key '{brief(at)}'; {nearest(name, list(hints))}")
        else:
            raise unknown(schema, _first_leaf(at, one), source)
    return made


def _first_leaf(key: str, value: Any) -> str:
    """The first whole key below an unknown one, which says more of what was meant."""
    while isinstance(value, dict) and value:
        name, value = next(iter(value.items()))
        key = f"{key}.{name}"
    return key


def _said_of_section(hints: dict[str, Any], value: Any, key: str) -> str:
    if "[" in key:
        return f"each item is a mapping with the keys {', '.join(hints)}"
    if "name" in hints and isinstance(value, str):
        return f"'{key}' is a section; did you mean {key}.name={folded(value)}?"
    names = [f"{key}.{name}" for name in hints]
    return f"'{key}' is a section; set one of its keys: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, Scalar) and value.value is None)


def _scalar(hint: Any, value: Any) -> Any:
    """Text or a number of a schema's type, of what is text, a number or a `Scalar`."""
    kind = typing.get_origin(hint) or hint
    read = value.value if isinstance(value, Scalar) else value
    if kind in (list, dict):
        raise MisfitError(_collection(hint, value))
    if isinstance(value, list | dict) or read is None or not isinstance(read, bool | int | float | str):
        raise MisfitError(_WANTED[kind])
    if kind is str:
        return _text(value)
    if kind is bool:
        return _truth(value)
    if isinstance(read, bool):
        raise MisfitError(_WANTED[kind])
    return _whole(read) if kind is int else float(read)


def _text(value: Any) -> str:
    if isinstance(value, bool | int | float):  # of JSON, which has quotes where there is text
        raise MisfitError("text")
    return value.text if isinstance(value, Scalar) else str(value)


def _truth(value: Any) -> bool:
    word = str(value).lower()
    if word not in TRUE + FALSE:
        raise MisfitError("true or false")
    return word in TRUE


def _whole(read: float | str) -> int:
    if isinstance(read, float):
        raise MisfitError(f"a whole number: {int(read)}" if read.is_integer() else "a whole number")
    number = int(read)
    if abs(number) > MOST_INT:
        raise MisfitError("a whole number below 2^63")
    return number


def _collection(hint: Any, value: Any) -> str:
    """What to say where a list or a mapping belongs."""
    items = typing.get_args(hint)
    if typing.get_origin(hint) is dict:
        return "a mapping, such as {name: value}"
    item = items[0]
    one = _WANTED.get(item, "a mapping")
    if isinstance(value, dict):
        return f"a list, each item {one}"
    words = [part.strip() for part in str(value).split(",")]
    try:
        example = ", ".join(str(_scalar(item, word)) for word in words)
    except (KeyError, ValueError, OverflowError):
        return f"a list, each item {one}"
    return f"a list: [{example}]"


def _plain(value: Any) -> Any:
    """Any value, `Scalar` resolved."""
    if isinstance(value, Scalar):
        return value.value
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if value is not None and not isinstance(value, bool | int | float | str):
        raise MisfitError("text, a number, true, false, null, a list or a mapping of these")
    return value
