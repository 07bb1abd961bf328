"""`KEY=VALUE` as people type it: what each override sets, and what was meant where one is written otherwise."""

from __future__ import annotations

import shlex
import typing
from collections.abc import Sequence
from typing import Any

from vla_tune.config.keys import hints_of, is_section, known_keys, meant, without_none
from vla_tune.config.reading import Scalar, UnreadableError, parse
from vla_tune.config.typed import fit, unknown, value_is_reference
from vla_tune.errors import UserError, brief

SOURCE = "command line"
OPTIONS = ("--out", "--overwrite", "--resume", "--plan", "--json", "--help", "--version")
NULL = ("null", "Null", "NULL", "~")
EXAMPLE = "an override is written KEY=VALUE, for example train.steps=500"
_PAIRS = {"[": "]", "{": "}"}
_QUOTES = ("'", '"')


def set_by(schema: type, overrides: Sequence[str]) -> list[dict[str, Any]]:
    """What each override sets, as a nested mapping of plain values.

    Raises:
        UserError: one is not written KEY=VALUE, its key is unknown, or its value is of another type.

    """
    pairs = [_pair(schema, overrides, at) for at in range(len(overrides))]
    return [_nested(schema, key, text) for key, text in pairs]


def given_twice(overrides: Sequence[str]) -> list[str]:
    """The keys that are set to two values."""
    pairs = {tuple(part.strip() for part in one.split("=", 1)) for one in overrides}
    keys = [key for key, *_ in sorted(pairs)]
    return sorted({key for key in keys if keys.count(key) > 1})


def _pair(schema: type, overrides: Sequence[str], at: int) -> tuple[str, str]:
    """Key and text of an override.

    Raises:
        UserError: it is written in another way; the message says how it is written.

    """
    one, after = overrides[at], list(overrides[at + 1 :])
    if one[:1] in _QUOTES and one[-1:] == one[0] and "=" in one:
        raise _rewritten(one, one[1:-1])
    if one.startswith("-"):
        raise _no_option(schema, one, after)
    key, equals, text = (part.strip() for part in one.partition("="))
    if not equals:
        raise _without_equals(schema, key, after)
    if not key:
        raise _slip(f"'{brief(one)}': the key is missing; {EXAMPLE}")
    if text.startswith("="):
        raise _rewritten(one, f"{key}={text.lstrip('=')}")
    if not text:
        if after and "=" not in after[0]:
            raise _rewritten(f"{one} {after[0]}", f"{key}={after[0]}")
        raise _slip(f"'{brief(one)}': a value is missing; write {key}=null for none")
    close = _PAIRS.get(text[0])
    if close and after and text.count(text[0]) > text.count(close):
        whole = " ".join([one, *after[: next((number for number, part in enumerate(after, 1) if close in part), len(after))]])
        raise _slip(f"'{brief(one)}': the shell takes it apart at its spaces; write {shlex.quote(whole)}")
    return key, text


def _slip(text: str) -> UserError:
    return UserError(f"{SOURCE}: {text}")


def _rewritten(given: str, as_it_should: str) -> UserError:
    return _slip(f"'{brief(given)}': write {brief(as_it_should)}")


def _no_option(schema: type, one: str, after: list[str]) -> UserError:
    from difflib import get_close_matches

    name, equals, text = one.partition("=")
    if name in OPTIONS:
        return _slip(f"{name}: there is no such option here")
    if close := get_close_matches(name, OPTIONS, n=1, cutoff=0.75):
        return _slip(f"{brief(name)}: there is no such option; did you mean {close[0]}?")
    key = name.lstrip("-")
    keys = _keys_like(schema, key)
    if not keys:
        return _slip(f"{brief(name)}: there is no such option, and no key like it; {EXAMPLE}")
    following = after[0] if after and not after[0].startswith("-") and "=" not in after[0] else "VALUE"
    return _slip(f"{brief(name)}: there is no such option; write {_proposed(keys, text if equals else following)}")


def _without_equals(schema: type, word: str, after: list[str]) -> UserError:
    key, colon, text = word.partition(":")
    keys = _keys_like(schema, key)
    if after and not text and (after[0] == "=" or (after[0].startswith("=") and len(after[0]) > 1)):
        text = after[0][1:] or (after[1] if len(after) > 1 else "VALUE")
    elif after and not text and "=" not in after[0] and not after[0].startswith("-"):
        text = after[0]
    if keys and (text or colon):
        return _slip(f"'{brief(word)}': {EXAMPLE.partition(',')[0]}: {_proposed(keys, text or 'VALUE')}")
    return _slip(f"'{brief(word)}': {EXAMPLE}")


def _keys_like(schema: type, key: str) -> list[str]:
    return [key] if key in known_keys(schema) else meant(schema, key)


def _proposed(keys: list[str], text: str) -> str:
    return " or ".join(f"{key}={shlex.quote(brief(text))}" for key in keys)


def _nested(schema: type, key: str, text: str) -> dict[str, Any]:
    """What one override sets."""
    parts, hint = key.split("."), schema
    for number, part in enumerate(parts):
        if is_section(hint):
            if part not in hints_of(hint):
                raise unknown(schema, key, SOURCE)
            hint = without_none(hints_of(hint)[part]) if number < len(parts) - 1 else hints_of(hint)[part]
            continue
        if typing.get_origin(hint) is dict:
            items = typing.get_args(hint)[1]
            below = parts[number:] if items is Any else [".".join(parts[number:])]
            return _wrapped([*parts[:number], *below], fit(schema, items, _read(items, key, text), key, SOURCE))
        raise _slip(f"'{'.'.join(parts[:number])}' is a single value and has no '{part}' below it")
    return _wrapped(parts, fit(schema, hint, _read(hint, key, text), key, SOURCE))


def _wrapped(parts: list[str], value: Any) -> dict[str, Any]:
    for part in reversed(parts):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def _read(hint: Any, key: str, text: str) -> Any:
    """The value of an override's text; where the option takes text, the text itself."""
    if value_is_reference(text):
        return text
    if without_none(hint) is str and text[0] not in (*_PAIRS, *_QUOTES):
        if text == "None" and hint is not str:
            raise _slip(f"{key}=None: write {key}=null")
        return Scalar(text, None) if text in NULL else text
    try:
        return parse(text)
    except UnreadableError as error:
        raise _slip(f"the value of '{brief(key)}={brief(text)}' is not readable as YAML: {error}") from None
