"""The JSON files of a model, wherever it lies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vla_tune.artifacts.typed import load_json
from vla_tune.errors import UserError, one_line


def snapshot(source: str, *, fetch: bool = True) -> Path | None:
    """The folder of a model: itself, or a Hub repository's with its JSON files; None where there is none, which opening it tells.

    Args:
        source: a folder or a Hub id.
        fetch: whether the Hub may be asked for what is not in its cache.

    Raises:
        UserError: the Hub has it and does not hand out all of these files, of which a loader might get those that it asks for.

    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    fetch = fetch and not constants.HF_HUB_OFFLINE
    try:
        return Path(snapshot_download(source, allow_patterns="*.json", ignore_patterns="*/*", local_files_only=not fetch))
    except (HFValidationError, RepositoryNotFoundError):
        return None
    except Exception as error:  # the Hub and the network raise many kinds
        if isinstance(error, LocalEntryNotFoundError) and not fetch:
            return None
        raise UserError(
            f"'{source}' cannot be opened: its configuration is looked at first, and cannot be fetched ({one_line(error)})"
        ) from None


def read_json(file: Path) -> Any:
    """The content of a file.

    Raises:
        UserError: it cannot be read.

    """
    if file.exists() and not file.is_file():  # a pipe says something else each time
        raise UserError(f"{file} is no file")
    try:
        return load_json(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({one_line(error)})") from None


def read_object(file: Path) -> dict[str, Any]:
    """The content of a file that holds one object.

    Raises:
        UserError: it cannot be read, or holds something else.

    """
    content = read_json(file)
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged: it holds no JSON object")
    return content


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
