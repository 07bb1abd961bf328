"""Artifact folders: the only thing that passes between stages.

A stage works in a folder of its own beside the target; when all is written, `Draft.publish` adds `artifact.json` with
a digest of every file and renames the folder, so an artifact is either whole or absent.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vla_tune.artifacts.claim import check_out, check_working, replaced
from vla_tune.artifacts.record import (
    SCHEMA,
    Artifact,
    FileEntry,
    environment,
    file_digest,
    files_table,
    is_as_signed,
    read_record,
    signed,
    table_digest,
)
from vla_tune.errors import UserError, one_line

__all__ = [
    "SCHEMA",
    "Artifact",
    "Draft",
    "empty",
    "environment",
    "file_digest",
    "files_table",
    "read_artifact",
    "sync_folder",
    "sync_tree",
    "table_digest",
    "write_json",
]
"""Callers find here what is of `record` too."""


class Draft:
    """A stage folder while it is written.

    Args:
        target: the final folder, `RUN/<stage>`.
        stage: the stage's name.
        overwrite: whether a finished folder may be replaced (only when the new one is whole).
        keep: whether what an earlier, interrupted run left in the working folder stays, and what this one leaves.

    Raises:
        UserError: the target exists and `overwrite` is false, or something there is not a stage's (`claim`).

    """

    def __init__(self, target: Path, stage: str, *, overwrite: bool = False, keep: bool = False) -> None:
        target = target if target.name not in ("", "..") else target.resolve()
        self._old = replaced(target)
        check_out(target, stage, overwrite=overwrite)
        self.target, self.stage, self._keep = target, stage, keep
        self.path = target.with_name(f"{target.name}.partial")
        check_working(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            _hold(self.path)
            if not keep:
                empty(self.path)
        except OSError as error:
            raise UserError(f"--out: {self.path} cannot be made ({error.strerror})") from None

    def publish(self, *, config: dict[str, Any], inputs: list[dict[str, str]], metrics: dict[str, Any], device: str = "cpu") -> Artifact:
        """Write `artifact.json`, sync, and rename the working folder to the target."""
        manifest: Any = {
            "schema": SCHEMA,
            "stage": self.stage,
            "version": importlib.metadata.version("vla-tune"),
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": config,
            "inputs": inputs,
            "files": files_table(self.path),
            "environment": environment(device),
            "metrics": metrics,
        }
        manifest = signed(manifest)
        sync_tree(self.path)
        write_json(self.path / "artifact.json", manifest)
        shutil.rmtree(self._old, ignore_errors=True)
        if self.target.exists():
            self.target.rename(self._old)
        try:
            self.path.rename(self.target)
        except OSError:
            if self._old.exists():
                self._old.rename(self.target)
            raise
        sync_folder(self.target.parent)
        shutil.rmtree(self._old, ignore_errors=True)
        _let_go(self.path)
        return Artifact(self.target, manifest)

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Nothing half-written is left behind: without a `publish`, the working folder goes, unless there is something to keep."""
        if not (self._keep and self.path.is_dir() and any(self.path.iterdir())):
            shutil.rmtree(self.path, ignore_errors=True)
        _let_go(self.path)


def empty(folder: Path) -> None:
    """Remove everything in a folder."""
    for left in folder.iterdir():
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


_HELD: dict[Path, int] = {}
"""The working folders of this process, and the handles that hold them against other processes."""


def _hold(folder: Path) -> None:
    """Keep other processes from working in a folder until it is let go, or this process ends.

    Raises:
        UserError: another process holds it.

    """
    _let_go(folder)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(f"--out: another run is at work in {folder}; wait for it, stop it, or give another --out") from None
    except OSError:  # a file system without locks: then nobody is kept out
        pass
    _HELD[folder.absolute()] = handle


def _forget_in_child() -> None:
    """Close a forked process's copies of the handles: a process that reads data must not hold a folder after its parent was killed."""
    for handle in _HELD.values():
        os.close(handle)
    _HELD.clear()


os.register_at_fork(after_in_child=_forget_in_child)


def _let_go(folder: Path) -> None:
    if (handle := _HELD.pop(folder.absolute(), None)) is not None:
        os.close(handle)


def read_artifact(path: Path, stage: str, make_with: str) -> Artifact:
    """Open an artifact and verify it: presence, schema, stage, and the size and digest of every file.

    Raises:
        UserError: names the file that is missing or changed, and `make_with`, the command that makes the artifact.

    """
    remedy = f"make it with `{make_with}`"
    file = path / "artifact.json"
    if not file.is_file():
        partial = path.with_name(f"{path.name}.partial")
        state = "is unfinished" if path.exists() or partial.exists() else "is missing"
        raise UserError(f"the {stage} artifact {path} {state} (no {file.name}); {remedy}")
    try:
        manifest = read_record(file)
    except ValueError as error:
        raise UserError(f"{file} is damaged ({one_line(error)}); {remedy}") from None
    if (manifest["schema"], manifest["stage"]) != (SCHEMA, stage):
        raise UserError(
            f"{path} is a '{manifest['stage']}' artifact of schema '{manifest['schema']}', not a '{stage}' artifact of '{SCHEMA}'; {remedy}"
        )
    if not is_as_signed(manifest):
        raise UserError(f"{file} was changed after it was written (its digest differs); {remedy}")
    root = path.resolve()
    for name, entry in manifest["files"].items():
        _check_file(path / name, entry, root, stage, remedy)
    return Artifact(path, manifest)


def _check_file(part: Path, entry: FileEntry, root: Path, stage: str, remedy: str) -> None:
    if not part.is_file():
        raise UserError(f"{part} is missing from the {stage} artifact; {remedy}")
    if not part.resolve().is_relative_to(root):
        raise UserError(f"{part} is a link out of the {stage} artifact; put the file itself there, or {remedy}")
    if part.stat().st_size != entry["bytes"]:
        raise UserError(f"{part} is truncated: {part.stat().st_size} bytes of {entry['bytes']}; {remedy}")
    if file_digest(part) != entry["sha256"]:
        raise UserError(f"{part} was changed after it was written (its digest differs); {remedy}")


def write_json(file: Path, value: object) -> None:
    """Write JSON under a temporary name, sync it, and rename it into place."""
    fresh = file.with_name(f"{file.name}.new")
    with fresh.open("w") as stream:
        json.dump(value, stream, indent=1)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(file)


def sync_tree(folder: Path) -> None:
    """Push a folder's files to the disk before it is renamed."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
