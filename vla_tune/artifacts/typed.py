"""JSON of a run, read as data of a known form: what is wrong with it is told by file and key.

A form is a `TypedDict`, or what is built of them. Keys that it does not name are left alone: later versions may write more.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vla_tune.errors import UserError, one_line

MOST_BYTES = 2**28
"""A JSON file of ours has some megabytes; a larger one is not parsed."""


def load_json(file: Path) -> Any:
    """Parse a file of JSON in UTF-8.

    Raises:
        OSError: it cannot be read. ValueError: it is no JSON, too large or nested too deeply.

    """
    if (size := file.stat().st_size) > MOST_BYTES:
        raise ValueError(f"it has {size} bytes")
    return parse_json(file.read_bytes().decode())


def parse_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is no JSON, or nested too deeply.

    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def checked(form: Any, value: Any) -> Any:
    """Return a value as it is, which has this form.

    Raises:
        ValueError: it has not; names the key.

    """
    from pydantic import ValidationError

    try:
        _adapter(form).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}") from None
    return value


def read_json(file: Path, form: Any = dict[str, Any], remedy: str = "make it again") -> Any:
    """Read a JSON file of a run.

    Raises:
        UserError: it is missing or not of this form; names it, and `remedy`.

    """
    with readable(str(file), remedy):
        return checked(form, load_json(file))


@contextmanager
def readable(what: str, remedy: str = "make it again", how: str = "read") -> Iterator[None]:
    """Turn whatever something damaged raises in here into a UserError that names it and says what to do."""
    from pyarrow import ArrowException
    from safetensors import SafetensorError

    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, SafetensorError, ArrowException) as error:
        raise UserError(f"{what} cannot be {how} ({one_line(error)}); {remedy}") from None


@functools.cache
def _adapter(form: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(form)
