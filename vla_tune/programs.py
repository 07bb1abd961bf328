"""What every program of ours does: keep other people's chatter out, and end with one message and the exit code of the contract."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from vla_tune.errors import RunError, UserError, is_denied, is_full_disk, shown
from vla_tune.interrupts import leave


@contextmanager
def reported(resume: str = "") -> Iterator[None]:
    """Turn what ends a command into one message on stderr and the exit code of the contract."""
    hush()
    try:
        with _unwinding():
            yield
    except (UserError, RunError) as error:
        _end(str(error), error.exit_code)
    except KeyboardInterrupt as error:
        _end("interrupted" + _hint(resume), 143 if isinstance(error, Terminated) else 130)
    except BaseException as error:
        if is_full_disk(error):
            place = getattr(error, "filename", None) or "while writing"
            _end(f"the disk is full ({place}); make room and run the same command again" + _hint(resume), 1)
        if is_denied(error):
            _end(f"{error.filename}: {error.strerror}; change its permissions, or give another --out", 2)  # type: ignore[attr-defined]
        code = getattr(error, "code", None)  # engine.signals.Interrupted; naming it here would import torch
        if type(error).__name__ != "Interrupted" or not isinstance(code, int):
            raise
        _end(f"stopped after a checkpoint; go on with: {resume}", code)


class Terminated(KeyboardInterrupt):
    """SIGTERM, which unwinds like Ctrl-C so that nothing half-written stays."""


TIDY: list[Callable[[], None]] = []
"""What is called where the program ends without unwinding."""


@contextmanager
def _unwinding() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise an exception in here."""
    before = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    if _is_importing(frame):  # of an exception in there a library makes another one, or Python prints it and goes on
        for tidy in TIDY:
            tidy()
        leave(number)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _is_importing(frame: FrameType | None) -> bool:
    while frame and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _hint(resume: str) -> str:
    return f"; a training run with a checkpoint goes on with: {resume}" if resume else ""


def _end(message: str, code: int) -> None:
    sys.stdout.flush()
    told = shown(message).replace("\n", "\\n")
    sys.stderr.write(f"vla-tune: {told}\n")
    raise SystemExit(code)


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hush() -> None:
    """Keep third-party chatter (warnings, info logs, progress bars) out of our output."""
    for key, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(key, value)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as Python has it for stderr: a name may be of any letters
    warnings.filterwarnings("ignore")
    logging.disable(logging.ERROR)
