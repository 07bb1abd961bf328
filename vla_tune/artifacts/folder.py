"""Artifact folders: the only thing that passes between stages.

A stage works in a folder of its own beside the target; when all is written, `Draft.publish` adds `artifact.json` with
a digest of every file and renames the folder, so an artifact is either whole or absent.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import shutil
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vla_tune.artifacts.claim import check_out, check_working, settle
from vla_tune.artifacts.record import (
    SCHEMA,
    Artifact,
    FileEntry,
    Record,
    environment,
    file_digest,
    files_table,
    is_as_signed,
    read_record,
    signed,
    table_digest,
)
from vla_tune.errors import UserError, one_line
from vla_tune.programs import TIDY

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
        keep: names in the working folder that an interrupted run leaves to the next one; everything else goes.
        drop: those of them that are no part of the artifact, and go when it is whole.

    Raises:
        UserError: the target exists and `overwrite` is false, or something there is not a stage's (`claim`).

    """

    def __init__(
        self, target: Path, stage: str, *, overwrite: bool = False, keep: Collection[str] = (), drop: Collection[str] = ()
    ) -> None:
        target = target if target.name not in ("", "..") else target.resolve()
        self._old = settle(target, stage)
        check_out(target, stage, overwrite=overwrite)
        self.target, self.stage, self._keep, self._drop = target, stage, keep, drop
        self.path = target.with_name(f"{target.name}.partial")
        check_working(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            _hold(self.path)
            self._clear()
        except OSError as error:
            raise UserError(f"--out: {self.path} cannot be made ({error.strerror})") from None

    def finished(self, config: dict[str, Any], inputs: list[dict[str, str]]) -> Artifact | None:
        """Publish what an earlier run of the same configuration was killed over, with all of it written; None where there is no such."""
        if not self._is_written():
            return None
        try:
            found = read_artifact(self.path, self.stage, "")
        except UserError:
            found = None
        if found and table_digest([found.config, found.manifest["inputs"]]) == table_digest([config, inputs]):
            return self._rename(found.manifest)
        (self.path / "artifact.json").unlink()
        self._clear()
        return None

    def publish(self, *, config: dict[str, Any], inputs: list[dict[str, str]], metrics: dict[str, Any], device: str = "cpu") -> Artifact:
        """Write `artifact.json`, sync, and rename the working folder to the target."""
        manifest: Any = {
            "schema": SCHEMA,
            "stage": self.stage,
            "version": importlib.metadata.version("vla-tune"),
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": config,
            "inputs": inputs,
            "files": {name: entry for name, entry in files_table(self.path).items() if Path(name).parts[0] not in self._drop},
            "environment": environment(device),
            "metrics": metrics,
        }
        manifest = signed(manifest)
        sync_tree(self.path)
        write_json(self.path / "artifact.json", manifest)
        return self._rename(manifest)

    def _rename(self, manifest: Record) -> Artifact:
        """The working folder becomes the target; from here on `finished` goes on where this is killed."""
        for name in self._drop:
            _remove(self.path / name)
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
        TIDY.append(self.close)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()
        TIDY.remove(self.close)

    def close(self) -> None:
        """Nothing half-written is left behind: without a `publish`, the working folder goes, but for what is kept."""
        if self.path.absolute() not in _HELD:
            return  # published; what is there now is another's
        with contextlib.suppress(OSError):
            self._clear()
            if not any(self.path.iterdir()):
                self.path.rmdir()
        _let_go(self.path)

    def _is_written(self) -> bool:
        """Whether a run that went on from what it kept has written everything; what was kept may be gone then."""
        return bool(self._keep) and (self.path / "artifact.json").is_file()

    def _clear(self) -> None:
        if not self._is_written():
            empty(self.path, self._keep)


def empty(folder: Path, keep: Collection[str] = ()) -> None:
    """Remove everything in a folder but what is called by one of these names."""
    for left in folder.iterdir():
        if left.name not in keep:
            _remove(left)


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
