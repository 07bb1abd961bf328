"""`artifact.json`, typed: what a finished stage says about itself, and the digests by which it is known again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

SCHEMA = "vla-tune/artifact/1"
UNLISTED = ("checkpoints", "trackers")
"""Folders of an artifact that its files table leaves out: what `--resume` needs, and what trackers keep, which no stage reads."""


class FileEntry(TypedDict):
    """One file of an artifact: SHA-256 in hexadecimal, and size."""

    sha256: str
    bytes: int


class Record(TypedDict):
    """The content of `artifact.json`, in this order.

    created_at: ISO 8601, UTC.
    config: the whole configuration, resolved.
    inputs: the artifacts that it was made from: `stage`, `path` and `digest` each.
    files: every file by its relative path.
    environment: the versions that a result depends on (`environment`).
    metrics: what the stage prints with `--json`.
    """

    schema: str
    stage: str
    version: str
    created_at: str
    config: dict[str, Any]
    inputs: list[dict[str, str]]
    files: dict[str, FileEntry]
    environment: dict[str, str]
    metrics: dict[str, Any]


_KINDS = {"config": dict, "inputs": list, "files": dict, "environment": dict, "metrics": dict}
"""What a part of the record is, where it is no text."""


def parse_record(text: str) -> Record:
    """Return the content of `artifact.json`.

    Raises:
        ValueError: it is no JSON, or a part is missing or of another kind.

    """
    found = json.loads(text)
    whole = isinstance(found, dict) and all(isinstance(found.get(key), _KINDS.get(key, str)) for key in Record.__annotations__)
    if not whole or not all(_is_entry(entry) for entry in found["files"].values()):
        raise ValueError("not the content of an artifact.json")
    return cast("Record", found)


def _is_entry(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("sha256"), str) and isinstance(value.get("bytes"), int)


@dataclass(frozen=True)
class Artifact:
    """A finished stage's folder and its verified manifest."""

    path: Path
    manifest: Record

    @property
    def digest(self) -> str:
        """`sha256:...` of the files table."""
        return table_digest(self.manifest["files"])

    @property
    def metrics(self) -> dict[str, Any]:
        return self.manifest["metrics"]

    @property
    def config(self) -> dict[str, Any]:
        return self.manifest["config"]

    def as_input(self) -> dict[str, str]:
        """Return how a later stage's manifest names this artifact."""
        return {"stage": self.manifest["stage"], "path": str(self.path), "digest": self.digest}


# Digests.


def files_table(folder: Path) -> dict[str, FileEntry]:
    """Return every file of an artifact by relative path, sorted."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != "artifact.json")
    named = ((file, file.relative_to(folder)) for file in files)
    return {name.as_posix(): file_entry(file) for file, name in named if name.parts[0] not in UNLISTED}


def file_entry(file: Path) -> FileEntry:
    """Return a file's row of a files table."""
    return {"sha256": file_digest(file), "bytes": file.stat().st_size}


def table_digest(table: Any) -> str:
    """Return the digest of a JSON-serialisable table, independent of the order of its keys."""
    return f"sha256:{hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()}"


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# Versions.


def environment(device: str) -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "lerobot": importlib.metadata.version("lerobot"),
        "git": _git_revision(),
        "device": device,
    }


def _git_revision() -> str:
    """Return the checkout's commit, with `-dirty` where it has changes; empty outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
