"""What is kept between runs: checked before it is used again, and made again where it is damaged.

Whatever is kept depends on a *basis*. There are two kinds.

- `made_once`: files that take long to make (demonstrations, questions, answers). The folder's name holds the basis, so that
  other settings have another folder, and the files have digests, for they stay for months.
- `KeptFiles` and `KeptRows`: the results of an evaluation that was interrupted, in its working folder. The basis lies beside
  them; what was left from another one is dropped. `Draft.publish` removes them when the evaluation is whole. A result that is a tensor
  is a file of its own, renamed into place. One that is a few numbers is a line appended to one file: an evaluation has thousands of these.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vla_tune.artifacts.folder import empty, write_json
from vla_tune.artifacts.record import file_digest, file_entry, files_table
from vla_tune.console import warn

TABLE = "files.json"
BASIS = "basis.json"


# Files that take long to make.


def made_once(content: Path, write: Callable[[Path], None]) -> Path:
    """Return `content`, a file or a folder, made by `write` where it is missing or not as it was written.

    Its parent folder holds nothing else than it and a table of digests, and appears by one rename. Two processes may make the same.
    """
    folder, problem = content.parent, find_damage(content)
    if problem is None:
        return content
    if folder.exists():
        warn(f"{folder} is damaged or of an earlier version ({problem}); what it held is made again")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        write(fresh / content.name)
        write_json(fresh / TABLE, _table(fresh / content.name))
        if find_damage(content) is not None:  # else another process was faster
            shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)
    except OSError:
        if find_damage(content) is not None:  # else another process was faster, between the two lines
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return content


def find_damage(content: Path) -> str | None:
    """Return what is wrong with what `made_once` has made, or None where every file is as it was written."""
    try:
        table = json.loads(content.with_name(TABLE).read_text())
        for name, entry in table.items():
            if file_digest((content if content.is_dir() else content.parent) / name) != entry["sha256"]:
                return f"{name} was changed"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return f"{TABLE} is unreadable"
    return None if content.exists() else f"{content.name} is missing"


def _table(content: Path) -> dict[str, Any]:
    return dict(files_table(content)) if content.is_dir() else {content.name: file_entry(content)}


# Results of an interrupted evaluation.


class _Kept:
    """Results in a folder, and all that they depend on.

    Args:
        folder: where they are; emptied, with one warning, where what it holds depends on something else.
        basis: all that a result depends on, as JSON.
        results: what they are, in the plural.

    """

    def __init__(self, folder: Path, basis: dict[str, Any], results: str) -> None:
        self.folder, self._basis, self._results = folder, json.loads(json.dumps(basis)), results
        self._head = folder / BASIS
        if folder.is_dir() and any(folder.iterdir()) and self._known() != self._basis:
            warn(f"{folder} holds {results} of another model or of other settings; they are dropped")
            empty(folder)

    def _known(self) -> Any:
        """Return what the results that are there depend on; None where that is not known."""
        try:
            return json.loads(self._head.read_text())
        except (OSError, ValueError):
            return None

    def begin(self) -> None:
        """Say what the results depend on before the first one is kept."""
        if not self._head.exists():
            self.folder.mkdir(exist_ok=True)
            write_json(self._head, self._basis)


class KeptFiles(_Kept):
    """A file a result."""

    def __len__(self) -> int:
        """How many there are."""
        return sum(file.name != BASIS and file.suffix != ".new" for file in self.folder.glob("*"))

    def put(self, name: str, write: Callable[[Path], None]) -> None:
        """Keep what `write` makes of the path that it is given, whole or not at all."""
        self.begin()
        fresh = self.folder / f"{name}.new"
        write(fresh)
        fresh.replace(self.folder / name)


class KeptRows(_Kept):
    """A line of JSON a result, in `<results>.jsonl`; the folder may hold other files that come with them (videos)."""

    def __init__(self, folder: Path, basis: dict[str, Any], results: str) -> None:
        super().__init__(folder, basis, results)
        self._file = folder / f"{results}.jsonl"

    def rows(self) -> list[dict[str, Any]]:
        """Return every whole row. One that a crash has cut off is dropped; others that are damaged are told of too."""
        lines = self._file.read_text(errors="replace").splitlines(keepends=True) if self._file.exists() else []
        known = [(line, row) for line in lines if line.endswith("\n") and (row := _row(line)) is not None]
        if len(known) < len(lines):
            if len(lines) - len(known) > (not lines[-1].endswith("\n")):
                warn(f"{self._file}: damaged rows are dropped, and these {self._results} are made again")
            fresh = self._file.with_suffix(".new")
            fresh.write_text("".join(line for line, _ in known))
            fresh.replace(self._file)
        return [row for _, row in known]

    def add(self, row: dict[str, Any]) -> None:
        """Keep one more."""
        self.begin()
        with self._file.open("a") as stream:
            stream.write(json.dumps(row) + "\n")


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
