"""What a stage may write to and replace: what is proven to be ours, never what a user keeps there.

A finished stage is proven by its `artifact.json` alone, and everything in it by the table there. A working folder (`RUN/train.partial`),
which a killed run has left, has none: everything in it has to be called like what stages write.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from vla_tune.artifacts.record import UNLISTED, read_record
from vla_tune.errors import UserError, one_line

STAGES = ("anchor", "train", "eval-vqa", "eval-rollout", "report", "benchmark")
WRITTEN = frozenset(
    (
        *("artifact.json", "run.json", "dataset.json", "metrics.jsonl", "checkpoints", "checkpoint", "after", "trackers", "stream.json"),
        *("policy", "vlm", "clip", "adapter", "merged"),
        *("anchor.safetensors", "subspace.safetensors", "subspace.json"),
        *("report.json", "predictions.parquet", "heldout.parquet", "cells.parquet", "scored"),
        *("episodes.parquet", "probe.parquet", "episodes.jsonl", "basis.json", "videos"),
        *("report.html", "steps.json"),
    )
)
"""The names at the top of a stage's folder while it is written; `.new` and `.old` behind them stand for half of something."""
DROPPINGS = (".DS_Store", "._*", "Thumbs.db", "desktop.ini", ".nfs*")
"""What systems leave in any folder, which is nobody's."""


def settle(target: Path, stage: str) -> Path:
    """Put right what a kill between the two renames of `Draft.publish`, or after them, has left.

    Returns:
        Where the stage's old folder is while the new one takes its place.

    Raises:
        UserError: what lies there is not ours.

    """
    old = target.with_name(f".{target.name}.replaced")
    if _stage_of(old) != stage:
        check_working(old)  # half of it is gone
    elif not target.exists():
        old.rename(target)
    if old.exists() and _stage_of(target) == stage:
        shutil.rmtree(old)
    return old


def check_out(target: Path, stage: str, *, overwrite: bool) -> None:
    """Check that a stage may be written to `target`.

    Raises:
        UserError: it is there already and `overwrite` is false; or it is a link, inside another stage, or not the stage's alone.

    """
    _check_outside(target)
    if target.is_symlink():
        raise UserError(f"{target} is a link, which the stage cannot replace; remove the link, or give another --out")
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists already; give --overwrite to replace it, or another --out")
    if target.exists():
        _check_replaceable(target, stage)


def check_working(folder: Path) -> None:
    """Check that what lies in a working folder is what a stage has left there, and may be deleted.

    Raises:
        UserError: it is a link, or something in it is not ours.

    """
    if folder.is_symlink():
        raise UserError(f"--out: {folder} is a link, and what it leads to would be emptied; remove it")
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        if not _is_dropping(entry) and entry.name.removesuffix(".new").removesuffix(".old") not in WRITTEN:
            raise UserError(f"--out: {entry} is not of a run, and {folder.name} would be emptied; move it away, or give another --out")


def _check_outside(target: Path) -> None:
    """Stop where a stage would be written into another one, or into the working folder of one."""
    run = target.absolute().parent.resolve()
    for folder in (run, *run.parents):
        inside = _stage_of(folder)
        if inside or folder.name in {f"{stage}.partial" for stage in STAGES}:
            stage = inside or folder.stem
            raise UserError(f"--out: {target} would lie inside {folder}, a folder of the stage '{stage}'; give another --out")


def _check_replaceable(target: Path, stage: str) -> None:
    """Stop where a folder is not the stage's own artifact, or holds something of a user's beside it."""
    refused = "so --overwrite does not replace it; move it away, or give another --out"
    if not target.is_dir():
        raise UserError(f"{target} is a file, {refused}")
    if not any(target.iterdir()):
        return
    try:
        record = read_record(target / "artifact.json")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or one_line(error)
        raise UserError(f"{target} is not a '{stage}' artifact (artifact.json: {why}), {refused}") from None
    if record["stage"] != stage:
        raise UserError(f"{target} is not a '{stage}' artifact but '{record['stage']}', {refused}")
    if (other := next(_others(target, set(record["files"])), None)) is not None:
        raise UserError(f"{other} is no file of the '{stage}' artifact, {refused}")


def _others(folder: Path, listed: set[str]) -> Iterator[Path]:
    """What a stage's folder holds beside what its table lists, and beside what no table lists."""
    for file in folder.rglob("*"):
        name = file.relative_to(folder)
        own = name.as_posix() in listed or name.as_posix() == "artifact.json" or name.parts[0] in UNLISTED
        if not own and (file.is_symlink() or not file.is_dir()) and not _is_dropping(file):
            yield file


def _stage_of(folder: Path) -> str | None:
    """The stage whose finished folder this is, by its readable `artifact.json`; None where it is none."""
    try:
        return read_record(folder / "artifact.json")["stage"]
    except (OSError, ValueError):
        return None


def _is_dropping(file: Path) -> bool:
    return any(fnmatch(file.name, pattern) for pattern in DROPPINGS)
