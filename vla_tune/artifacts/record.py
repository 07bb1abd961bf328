"""`artifact.json`, typed: what a finished stage says about itself, and the digests by which it is known again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from vla_tune.artifacts.typed import checked, load_json
from vla_tune.errors import UserError

SCHEMA = "vla-tune/artifact/1"
UNLISTED = ("checkpoints", "trackers")
"""Folders of an artifact that its files table leaves out: what `--resume` needs, and what trackers keep, which no stage reads."""


SECTIONS = ("policy", "data", "anchor", "method", "train", "vqa", "rollout", "stream")
"""The mappings of a configuration."""
OWN = "content"
"""The key of an object's own digest."""


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
    content: the digest of all of this; artifacts of earlier versions have none.
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
    content: NotRequired[str]


# Reading and writing it.


def signed(value: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object with the digest of its own content under `content`, which is checked by `is_as_signed`."""
    known = json.loads(json.dumps(value))  # as it will be read: tuples are lists, and keys are text
    return {**known, OWN: _own_digest(known)}


def is_as_signed(value: Mapping[str, Any]) -> bool:
    """Whether an object is what `signed` returned; one without a digest is an earlier version's, and nothing is known of it."""
    return OWN not in value or value[OWN] == _own_digest(value)


def _own_digest(value: Mapping[str, Any]) -> str:
    return table_digest({key: one for key, one in value.items() if key != OWN})


def read_record(file: Path) -> Record:
    """Return the content of an `artifact.json`; whether it is as it was written is not looked at.

    Raises:
        OSError: it cannot be read. ValueError: it is no JSON, or a part is missing or of another kind; names the part.

    """
    record: Record = checked(Record, load_json(file))
    checked(dict[str, dict[str, Any]], {f"config.{key}": value for key, value in record["config"].items() if key in SECTIONS})
    for number, one in enumerate(record["inputs"]):
        if not one.keys() >= {"stage", "path", "digest"}:
            raise ValueError(f"inputs.{number}: stage, path or digest is missing")
    for name in record["files"]:
        if not name or name.startswith("/") or "\0" in name or ".." in name.split("/"):
            raise ValueError(f"files: {name!r} leads out of the folder")
    return record


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

    def file(self, name: str) -> Path:
        """Return the path of a file that the artifact lists, and that was verified therefore.

        Raises:
            UserError: it lists no such file.

        """
        if name not in self.manifest["files"]:
            raise UserError(f"{self.path / 'artifact.json'} lists no {name}; make the artifact again")
        return self.path / name

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
