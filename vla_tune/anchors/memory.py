"""How many samples a pass takes at once: as many as are wished for and fit into memory, by what the samples before took."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from vla_tune.console import say

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHARE = 0.25
"""Of the free memory, what a pass may take: samples differ, what it gathers grows, and large ones gain little by going together."""
CGROUP = Path("/sys/fs/cgroup")


class Footprint(TorchDispatchMode):
    """Counts, inside the block, the bytes of the tensors that are made and let go of on a kind of device; needs no values.

    peak: the most that lived at once of those that are gone at the end.
    kept: the bytes of those that are still there at the end.
    most: the most that lived at once, kept or not; also known inside the block, as is `now`, what lives then.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind
        self.peak = self.kept = self.most = self.now = 0
        self._events: list[tuple[int, int]] = []
        self._alive: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {id(tensor.untyped_storage()) for tensor in tree_iter((args, kwargs)) if isinstance(tensor, Tensor)}
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor) and tensor.device.type == self._kind and id(tensor.untyped_storage()) not in known:
                self._note(tensor.untyped_storage())
        return out

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[arg-type]
        self.kept = sum(size for size, _ in self._alive.values())
        self.peak = max(accumulate(size for number, size in self._events if number not in self._alive), default=0)
        self._alive, self._events = {}, []

    def _note(self, storage: torch.UntypedStorage) -> None:
        number, size = len(self._events), storage.nbytes()

        def let_go(_: object) -> None:
            if self._alive.pop(number, None):
                self._events.append((number, -size))
                self.now -= size

        self._events.append((number, size))
        self.now += size
        self.most = max(self.most, self.now)
        self._alive[number] = size, weakref.ref(storage, let_go)


class Portions:
    """Deals out samples: the first alone, then as many at once as memory allows by what those before took, at most `wish`.

    what: the pass, told with the number where it is fewer than wished.
    """

    def __init__(self, wish: int, device: torch.device, what: str) -> None:
        self._wish, self._device, self._what = wish, device, what
        self._size, self._told, self._most = 1, wish, 1.0

    def deal(self, count: int, work: Callable[[range], None]) -> None:
        """Call `work` on the numbers 0 to `count` - 1, in order, a stretch at a time; what it keeps afterwards is not counted."""
        done = 0
        while done < count:
            part = range(done, min(done + self._size, count))
            with Footprint(self._device.type) as seen:
                work(part)
            done = part.stop
            self._most = max(self._most, seen.peak / len(part))
            free = free_bytes(self._device)
            self._size = max(1, min(self._wish, int(SHARE * free / self._most)))
            if self._size < min(self._told, count):
                self._told = self._size
                sizes = f"one takes {self._most / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free"
                say(f"{self._what}: {self._size} at once instead of {self._wish} ({sizes})")


@contextmanager
def checkpointed(vlm: PreTrainedModel) -> Iterator[None]:
    """Inside the block, the VLM's transformer blocks keep only their inputs for the way back and are computed again on it."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    vlm.gradient_checkpointing_enable({"use_reentrant": False})
    blocks = [module for module in vlm.modules() if isinstance(module, GradientCheckpointingLayer)]
    before = [block.training for block in blocks]
    for block in blocks:
        block.training = True  # transformers asks for it; the modules inside stay as they are, without dropout
    try:
        yield
    finally:
        vlm.gradient_checkpointing_disable()
        for block, training in zip(blocks, before, strict=True):
            block.training = training


def free_bytes(device: torch.device) -> int:
    """What can still be allocated on a device; on the CPU also within the container's limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = int(psutil.virtual_memory().available)
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.is_file() and (most := limit.read_text().strip()).isdigit():
        free = min(free, int(most) - int(used.read_text()))
    return free
