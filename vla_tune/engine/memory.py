"""What training is done with goes back to the system before anything else is made."""

from __future__ import annotations

import contextlib
import ctypes
import gc


def release() -> None:
    """Collect the optimizer, which a cycle keeps, and return freed memory: glibc kept 2.5 of 3.4 GB after a LoRA run."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library returns it by itself
        ctypes.CDLL("libc.so.6").malloc_trim(0)
