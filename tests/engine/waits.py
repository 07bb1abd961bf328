"""What would wait for a GPU, counted on a CPU: values that are read, and sizes that depend on values."""

from __future__ import annotations

import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode

READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.masked_select.default}


OTHERS = {
    "vqa/replay.py": "row numbers on the host",
    "engine/reduce.py": "autograd, in the backward pass of what transformers merges pictures into texts by",
}
"""Files of ours that a wait is told of and which it is not of."""


class Waits(TorchDispatchMode):
    """Collects where our own code waits; lerobot's and transformers' reads are theirs (docs/traps.md lists them)."""

    def __init__(self):
        super().__init__()
        self.ours = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masked = func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default) and any(
            one is not None and one.dtype == torch.bool for one in args[1]
        )
        if func in READS or masked:
            self._note(str(func))
        return func(*args, **(kwargs or {}))

    def _note(self, what):
        frame = sys._getframe(2)
        while frame and ("/torch/" in frame.f_code.co_filename or "<" in frame.f_code.co_filename):
            frame = frame.f_back
        if frame and "/vla_tune/" in frame.f_code.co_filename:
            file = frame.f_code.co_filename.rpartition("/vla_tune/")[2]
            self.ours += [] if file in OTHERS else [f"{what} in {file}:{frame.f_lineno}"]

    def __enter__(self):
        """Also what turns a tensor into numbers without an operation."""
        self._plain = {name: getattr(torch.Tensor, name) for name in ("tolist", "cpu", "numpy")}
        for name, method in self._plain.items():
            setattr(torch.Tensor, name, self._noting(name, method))
        return super().__enter__()

    def __exit__(self, *error):
        for name, method in self._plain.items():
            setattr(torch.Tensor, name, method)
        return super().__exit__(*error)

    def _noting(self, name, method):
        def noted(tensor, *given, **more):
            self._note(name)
            return method(tensor, *given, **more)

        return noted
