"""What a run reads, in an order that seed and step alone decide: not the number of workers, and not where it was resumed."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vla_tune.data.frames import Frames, open_frames
from vla_tune.errors import RunError, UserError
from vla_tune.programs import cores

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from lerobot.datasets.lerobot_dataset import LeRobotDataset

Transforms = Callable[[Tensor], Tensor]

MOST_WORKERS = 4
DIED = (
    "a process that reads the data has died, perhaps for want of memory or of shared memory; give data.workers=0 (read in the training "
    "process), or the container more of it (docker run --shm-size)"
)


# Episodes and frames.


def chosen_episodes(wanted: Sequence[int] | None, total: int) -> list[int]:
    """The episodes of `data.episodes` in the dataset's order; all where none are named.

    Raises:
        UserError: the dataset has no such episode, or the list is empty.

    """
    if wanted is None:
        return list(range(total))
    strange = sorted({number for number in wanted if not 0 <= number < total})
    if strange:
        raise UserError(f"data.episodes: the dataset has no episode {', '.join(map(str, strange))}; it has 0 to {total - 1}")
    if not wanted:
        raise UserError("data.episodes=[]: name at least one episode, or leave the key out for all")
    return sorted(set(wanted))


def heldout_episodes(share: float, chosen: Sequence[int]) -> list[int]:
    """Which of the chosen episodes training leaves out: one in every 1 / share, spread evenly, so over the tasks too."""
    count = int(share * len(chosen))
    return [chosen[(2 * number + 1) * len(chosen) // (2 * count)] for number in range(count)]


def episode_frames(dataset: LeRobotDataset, episodes: Sequence[int], every: int = 1) -> list[int]:
    """The frames of these episodes: the first of each, and each `every` after it."""
    starts, ends = dataset.meta.episodes["dataset_from_index"], dataset.meta.episodes["dataset_to_index"]
    return [frame for one in episodes for frame in range(int(starts[one]), int(ends[one]), every)]


@functools.lru_cache(maxsize=2)
def opened(dataset: LeRobotDataset, cache_mb: int) -> Frames:
    """The dataset's frames, decoded into memory where they need at most `cache_mb` MB; the same object when asked again."""
    return open_frames(dataset, cache_mb)


# The order.


class Draw(NamedTuple):
    """A sample of a batch: the frame that is read and, for what is drawn for it, its place."""

    frame: int
    step: int
    place: int


class Order(Sampler[list[Draw]]):
    """The batches of an endless series of epochs, each a permutation of the frames that (seed, epoch) decides.

    The permutations are those of lerobot's EpisodeAwareSampler for the same frames and seed. Every batch is whole: it runs on into the
    next epoch, so batch `step` holds the samples `step * batch_size` and on. In lerobot's training the last batch of an epoch is short
    (`short_last` does the same); the first epoch is equal but for it.

    Args:
        frames: what an epoch consists of, in the dataset's order.
        start_step: the first batch, counted from 0.
        task: of a stream; each task has permutations of its own, and the first those without a stream.
        short_last: batches end with an epoch, as in lerobot's training.

    """

    def __init__(
        self, frames: Sequence[int], batch_size: int, seed: int, start_step: int = 0, *, task: int = 0, short_last: bool = False
    ) -> None:
        assert frames, "an epoch without frames"
        self._frames = torch.tensor(frames)
        self._batch_size, self._seed, self._task, self._short_last = batch_size, seed, task, short_last
        self._start_step = start_step
        self._newest: dict[int, Tensor] = {}

    def rows(self, step: int) -> list[int]:
        """The frames of batch `step`."""
        count, size = len(self._frames), self._batch_size
        if self._short_last:
            epoch, batch = divmod(step, -(-count // size))
            return self._epoch(epoch)[batch * size : (batch + 1) * size].tolist()
        first, end = step * size, (step + 1) * size
        epochs = range(first // count, (end - 1) // count + 1)
        parts = [self._epoch(epoch)[max(first - epoch * count, 0) : end - epoch * count] for epoch in epochs]
        return torch.cat(parts).tolist()

    def __iter__(self) -> Iterator[list[Draw]]:
        step = self._start_step
        while True:
            yield [Draw(frame, step, place) for place, frame in enumerate(self.rows(step))]
            step += 1

    def _epoch(self, epoch: int) -> Tensor:
        if epoch not in self._newest:
            generator = torch.Generator().manual_seed(_seed(self._seed, epoch, *([self._task] if self._task else [])))
            order = torch.randperm(len(self._frames), generator=generator)
            self._newest = {key: value for key, value in self._newest.items() if key == epoch - 1} | {epoch: self._frames[order]}
        return self._newest[epoch]


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, dtype=np.uint64)[0])


# Reading.


def image_transforms(settings: Mapping[str, Any] | None) -> Transforms | None:
    """lerobot's image transforms by the fields of its ImageTransformsConfig; None where they are not enabled.

    Raises:
        UserError: a field, a transform or its arguments are not lerobot's.

    """
    from lerobot.transforms import ImageTransformConfig, ImageTransforms, ImageTransformsConfig

    if not settings or not settings.get("enable"):
        return None
    try:
        own = {name: ImageTransformConfig(**one) for name, one in settings.get("tfs", {}).items()}
        made: Transforms = ImageTransforms(ImageTransformsConfig(**{**settings, **({"tfs": own} if own else {})}))
    except (TypeError, ValueError) as error:
        raise UserError(f"data.image_transforms: {error}") from None
    return made


def training_batches(
    frames: Frames,
    wanted: Sequence[int],
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    task: int = 0,
    workers: int | None = None,
    device: str = "cpu",
    transforms: Transforms | None = None,
    reference: bool = False,
) -> Iterator[dict[str, Any]]:
    """Batches without end from batch `start_step` on, on the host, pictures as uint8 (float32 after transforms).

    Worker processes start now, read ahead, and end when the iterator is closed or forgotten.

    Args:
        frames: what is read (`opened`).
        wanted: the frames that are trained on, in the dataset's order.
        workers: processes that read ahead; None for as many as help.
        device: where the batches will go; for a CUDA device they lie in pinned memory.
        transforms: drawn anew for every sample and camera, by seed, step, place and task.
        reference: lerobot's own batches, the last of an epoch short.

    """
    order = Order(wanted, batch_size, seed, start_step, task=task, short_last=reference)
    count = helpful_workers(frames) if workers is None else workers
    loader: DataLoader[dict[str, Any]] = DataLoader(
        _Reader(frames, seed, task, transforms),
        batch_size=None,  # the order's items are whole batches
        sampler=order,
        num_workers=count,
        collate_fn=_unchanged,
        pin_memory=device.startswith("cuda"),
        multiprocessing_context="fork" if count else None,  # another way would import lerobot in each worker
        generator=torch.Generator(),  # else it draws from the global generator, and a resumed run draws once more
    )
    with _undisturbed():
        own = set(multiprocessing.active_children())
        batches = iter(loader)
        processes = list(set(multiprocessing.active_children()) - own)
    weakref.finalize(batches, _end, processes)  # also when the program ends, which waits for its processes
    return _checked(batches, processes)


def helpful_workers(frames: Frames) -> int:
    """How many processes should read ahead: none for what lies in memory, else up to 4, a core left to training."""
    return 0 if frames.in_memory else min(MOST_WORKERS, cores() - 1)


def ordered_batches(frames: Frames, wanted: Sequence[int], batch_size: int) -> Iterator[dict[str, Any]]:
    """These frames once and in order, read as they are asked for; pictures as uint8."""
    for first in range(0, len(wanted), batch_size):
        yield _read(frames, list(wanted[first : first + batch_size]))


def to_device(batch: dict[str, Any], device: str | torch.device) -> dict[str, Any]:
    """The batch's tensors on the device; from pinned memory they are on their way when this returns."""
    return {key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for key, value in batch.items()}


def as_floats(batch: dict[str, Any]) -> dict[str, Any]:
    """Pictures that are uint8 in 0..1, to the bit the same on every device."""
    return {
        # A plain 255 would become a product with its inverse on a GPU.
        key: value.float() / torch.full((), 255.0, device=value.device)
        if isinstance(value, Tensor) and value.dtype == torch.uint8
        else value
        for key, value in batch.items()
    }


@dataclass
class _Unreadable:
    """Passes through the loader in a batch's place: an exception would arrive with the worker's traceback in its text."""

    message: str


@dataclass
class _Reader(Dataset[dict[str, Any]]):
    frames: Frames
    seed: int
    task: int
    transforms: Transforms | None

    def __getitem__(self, draws: list[Draw]) -> dict[str, Any] | _Unreadable:  # type: ignore[override]
        try:
            batch = _read(self.frames, [draw.frame for draw in draws])
        except RunError as error:
            return _Unreadable(str(error))
        if self.transforms is None:
            return batch
        pictures = {key: value for key, value in as_floats(batch).items() if key in self.frames.cameras}
        changed = [self._transformed({key: value[row] for key, value in pictures.items()}, draw) for row, draw in enumerate(draws)]
        return batch | {key: torch.stack([one[key] for one in changed]) for key in pictures}

    def _transformed(self, pictures: dict[str, Tensor], draw: Draw) -> dict[str, Tensor]:
        """A sample's pictures as floats (lerobot's noise, blur and shadow pass over bytes), the global generator left as it was."""
        assert self.transforms is not None
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(_seed(self.seed, draw.step, draw.place, self.task, 1))  # torch.manual_seed sets the GPU's too
        try:
            return {key: self.transforms(pictures[key]) for key in self.frames.cameras}
        finally:
            torch.set_rng_state(state)


def _read(frames: Frames, wanted: list[int]) -> dict[str, Any]:
    try:
        return frames.batch(wanted)
    except UserError as error:  # which it was before the first step
        raise RunError(str(error)) from None


def _unchanged(batch: Any) -> Any:
    return batch


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Start or end processes: Ctrl-C and SIGTERM do not reach new ones (the parent ends them), and the parent's handlers stay.

    torch's handler of SIGCHLD would raise in the middle of a training step; a dead worker is noticed when its batch is due.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # its default; where it is not set, tokenizers warns of every fork
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if main:
            signal.signal(signal.SIGCHLD, handler)


def _end(processes: list[BaseProcess]) -> None:
    """End what is still there of processes that only read; another loader's handler of SIGCHLD would raise."""
    with _undisturbed():
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def _checked(batches: Iterator[Any], processes: list[BaseProcess]) -> Iterator[dict[str, Any]]:
    try:
        while True:
            try:
                batch = next(batches)
            except (RuntimeError, OSError, EOFError) as error:  # the latter where the worker had a batch on its way
                if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                    raise
                _end(processes)  # the exception refers to them
                raise RunError(f"{DIED} ({type(error).__name__})") from None
            if isinstance(batch, _Unreadable):
                raise RunError(batch.message)
            yield batch
    finally:
        del batches  # torch asks its workers to end
