"""Ctrl-C and SIGTERM where there is nothing to tidy: before a command begins and after it has ended. One line, exit code 130 or 143.

`programs.reported` sees to them in between. Nothing is imported here that takes time (`signal` takes 6 ms, `contextlib` 4): until
`at_once` was called, Python itself answers, with a traceback.
"""

import atexit
import os
import sys
from _signal import SIG_IGN, SIGINT, SIGTERM, signal

NUMBERS = (SIGINT, SIGTERM)


def at_once() -> None:
    """From here on both end the program where it stands; while the interpreter is taken down, neither does anything."""
    for number in NUMBERS:
        signal(number, leave)
    atexit.register(_ignore)  # the first to be registered is called last


def leave(number: int, _frame: object = None) -> None:
    """End the program without unwinding."""
    try:  # noqa: SIM105 - see above
        sys.stdout.flush()
    except (OSError, RuntimeError, ValueError):  # closed, or the signal came while it was written to
        pass
    os.write(2, b"vla-tune: interrupted\n")
    os._exit(128 + number)


def _ignore() -> None:
    for number in NUMBERS:
        signal(number, SIG_IGN)
