"""Names of files in somebody's table: only what lies inside the table's own folder is read."""

from __future__ import annotations

import reprlib
from pathlib import Path

from vla_tune.errors import UserError


def file_inside(folder: Path, name: str, where: str) -> Path:
    """The real file that a name in a table stands for.

    A folder in the Hub's cache is one of links to the repository's `blobs`, which are its own.

    Raises:
        UserError: it lies elsewhere, by `..`, an absolute path or a link, or is no file.

    """
    shown = shortened(name)
    try:
        home, real = folder.resolve(), (folder / name).resolve()
        there = real.is_file()
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, no Unicode, links in a circle
        raise UserError(f"{where}: {shown} is no name that a file can have") from None
    if not any(real.is_relative_to(own) for own in (home, *_blobs(home))):
        raise UserError(f"{where}: {shown} lies outside of {folder}; only files in this folder are read, so copy it there")
    if not there:
        raise UserError(f"{where}: there is no file {shown} in {folder}")
    return real


def shortened(name: object) -> str:
    """What stands in a table, quoted and short enough for a message."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    return short.repr(name)


def utf8_text(content: bytes, where: str) -> str:
    """The text of a file, with or without a byte order mark.

    Raises:
        UserError: it is not in UTF-8; the line is named.

    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        other = (
            "UTF-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else f"the byte 0x{content[error.start]:02x} is another encoding's"
        )
        raise UserError(f"{where}:{line}: not UTF-8 ({other}); save the file as UTF-8") from None


def _blobs(home: Path) -> tuple[Path, ...]:
    for folder in (home, *home.parents):
        if folder.parent.name == "snapshots":
            return (folder.parent.parent / "blobs",)
    return ()
