"""The JSON files of a model, wherever it lies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vla_tune.errors import UserError, one_line


def snapshot(source: str) -> Path | None:
    """The folder of a model: itself, or a Hub repository's with its JSON files fetched; None where there is none."""
    from huggingface_hub import snapshot_download

    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(source, allow_patterns="*.json"))
    except Exception:  # the Hub raises many kinds
        return None  # opening it tells


def read_json(file: Path) -> Any:
    """The content of a file.

    Raises:
        UserError: it cannot be read.

    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({one_line(error)})") from None
    except RecursionError:
        raise UserError(f"{file} cannot be read (it is nested too deeply)") from None


def fields(content: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a JSON document with its value, at any depth."""
    waiting = [content]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from one.items()
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
