"""The two ways in which a command ends badly, each with its exit code."""

from __future__ import annotations

import errno
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the direction of the text around them, so that it reads as another."""


class UserError(ValueError):
    """The user's input is wrong: the message names the thing, where it is and how to mend it. Exit code 2."""

    exit_code = 2


class RunError(RuntimeError):
    """It failed while running (NaN loss, full disk): the message says what is safe. Exit code 1."""

    exit_code = 1


def one_line(error: BaseException) -> str:
    """What a library's error says, on one line of at most 300 characters; its type where it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."


def shown(text: str) -> str:
    """Return text as a terminal may print it.

    Controls (colours, the cursor), marks that turn the direction of what follows, and halves of characters stand there by their numbers.
    """
    return text if text.isprintable() else "".join(one if _is_shown(one) else one.encode("unicode_escape").decode() for one in text)


def _is_shown(character: str) -> bool:
    return character in "\n\t" or not (character in TURNING or unicodedata.category(character) in ("Cc", "Cs"))


def brief(value: object) -> str:
    """A value of the user's as a message shows it: on one line, at most 120 characters."""
    text = shown(" ".join(str(value).split()))
    return text if len(text) <= 120 else f"{text[:120]}..."


def is_full_disk(error: BaseException) -> bool:
    """Whether a write failed for want of room; safetensors tells it in words alone."""
    return getattr(error, "errno", None) == errno.ENOSPC or (type(error).__name__ == "SafetensorError" and "os error 28" in str(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a device or on the host; torch's allocator of the CPU tells it in words alone."""
    names = {kind.__name__ for kind in type(error).__mro__}
    told = any(words in str(error) for words in ("not enough memory", "can't allocate memory"))
    return bool(names & {"OutOfMemoryError", "MemoryError"}) or (isinstance(error, RuntimeError) and told)


@contextmanager
def out_of_memory_told(device: str, remedy: str) -> Iterator[None]:
    """Turn a failed allocation into one message.

    Args:
        device: what ran out of memory.
        remedy: the keys that help.

    Raises:
        RunError: memory ran out in the block.

    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(f"out of memory on {device}: try {remedy}") from None


def is_denied(error: BaseException) -> bool:
    """Whether the file system forbids it: permissions, or mounted to be read alone."""
    return isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename is not None


def folded(name: str) -> str:
    """A name in lower case and with one kind of dash, so that `WiSE-FT` is `wise_ft`."""
    return name.strip().casefold().replace("-", "_").replace(" ", "_")


def nearest(name: str, known: list[str], prefix: str = "") -> str:
    """`did you mean 'x'?` for the closest known name, else a list of what is known; names are compared without the `prefix`."""
    from difflib import get_close_matches

    names = {folded(one.removeprefix(prefix)): one for one in known}
    close = get_close_matches(folded(name.removeprefix(prefix)), names, n=1, cutoff=0.5)
    return f"did you mean '{names[close[0]]}'?" if close else f"known: {', '.join(sorted(known))}"
