"""Batches are a function of seed and step alone, and equal what lerobot reads and collates."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_tune.data import batches as data
from vla_tune.errors import RunError, UserError

WINDOWS = {"action": [0.0, 0.1, 0.2, 0.3], "observation.state": [-0.1, 0.0]}
CAMERAS = ("observation.images.front", "observation.images.wrist")


@pytest.fixture(scope="module")
def small_videos(tmp_path_factory):
    """Three episodes of 9 to 11 frames, two cameras, in lerobot's own videos."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = tmp_path_factory.mktemp("data") / "videos"
    numbers = {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "gripper"]}
    video = {"dtype": "video", "shape": (64, 96, 3), "names": ["height", "width", "channels"]}
    features = {**dict.fromkeys(CAMERAS, video), "observation.state": numbers, "action": numbers}
    dataset = LeRobotDataset.create("local/videos", fps=10, features=features, root=root, use_videos=True)
    rng = np.random.default_rng(0)
    for episode in range(3):
        for number in range(9 + episode):
            frame = {key: rng.normal(size=4).astype(np.float32) for key in ("observation.state", "action")}
            for shade, key in enumerate(CAMERAS):
                frame[key] = np.full((64, 96, 3), 20 * number + 3 * episode + shade, dtype=np.uint8)
                frame[key][:, : 8 * number + 8, shade] = 250
            dataset.add_frame({**frame, "task": ("Open a drawer", "Press a button")[episode % 2]})
        dataset.save_episode()
    dataset.finalize()
    return root


@pytest.fixture(params=["stored", "decoded", "videos"])
def opened(request, small_dataset):
    """A function that opens a dataset of pictures (as they are needed, or in memory) or of videos, and its frames."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    def make(**given):
        root = request.getfixturevalue("small_videos") if request.param == "videos" else small_dataset
        windows = {**WINDOWS, **({} if request.param == "videos" else {"observation.image": [0.0]})}
        settings = {"delta_timestamps": windows, "video_backend": "pyav", "return_uint8": True, **given}
        dataset = LeRobotDataset(f"local/{root.name}", root=root, **settings)
        return dataset, data.opened(dataset, 0 if request.param == "stored" else 1000)

    return make


def equal(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(value, other[key]) and value.dtype == other[key].dtype if isinstance(value, torch.Tensor) else value == other[key]
        for key, value in one.items()
    )


def take(count, batches):
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 9), st.integers(0, 3), st.integers(0, 20))
def test_batches_cut_an_endless_series_of_permutations(count, size, seed, task, start):
    frames = [10 + 3 * number for number in range(count)]
    order = data.Order(frames, size, seed, task=task)
    stream = [frame for step in range(start + 4) for frame in order.rows(step)]
    for first in range(0, len(stream) - count + 1, count):
        assert sorted(stream[first : first + count]) == frames
    resumed = data.Order(frames, size, seed, start, task=task)
    drawn = list(itertools.islice(resumed, 4))
    assert [draw.frame for batch in drawn for draw in batch] == stream[start * size :]
    assert [(draw.step, draw.place) for draw in drawn[1]] == [(start + 1, place) for place in range(size)]
    assert order.rows(start) == resumed.rows(start)


@pytest.mark.parametrize("size", [4, 7])
def test_the_reference_order_is_lerobots(size):
    from lerobot.datasets.sampler import EpisodeAwareSampler, compute_sampler_state
    from torch.utils.data import BatchSampler

    frames = [*range(3, 12), *range(20, 31)]
    theirs = EpisodeAwareSampler([3, 12, 20], [12, 20, 31], episode_indices_to_use=[0, 2], shuffle=True, seed=5)
    batches = [list(batch) for _ in range(3) for batch in BatchSampler(theirs, size, drop_last=False)]
    ours = data.Order(frames, size, 5, short_last=True)
    assert [ours.rows(step) for step in range(len(batches))] == batches
    theirs.load_state_dict(compute_sampler_state(7, len(theirs), size, num_processes=1))
    assert next(iter(BatchSampler(theirs, size, drop_last=False))) == ours.rows(7)
    # by default the first epoch is lerobot's as well
    flat = [frame for step in range(20) for frame in data.Order(frames, size, 5).rows(step)]
    assert flat[:20] == [frame for batch in batches[: -(-20 // size)] for frame in batch]


def test_seeds_epochs_and_tasks_have_orders_of_their_own():
    frames = list(range(50))
    orders = [data.Order(frames, 50, seed, task=task).rows(epoch) for seed in (0, 1) for task in (0, 1, 2) for epoch in (0, 1, 2)]
    assert len({tuple(order) for order in orders}) == len(orders)


@pytest.mark.parametrize("episodes", [None, [0, 2]])
def test_batches_equal_lerobots_but_for_bytes(opened, episodes):
    from lerobot.utils.collate import lerobot_collate_fn

    dataset, frames = opened(episodes=episodes)
    floats, _ = opened(episodes=episodes, return_uint8=False)
    wanted = data.episode_frames(dataset, episodes or range(3))
    row = {frame: number for number, frame in enumerate(wanted)}
    rng = np.random.default_rng(0)
    for batch in ([*wanted[:9], wanted[-1]], rng.permutation(wanted).tolist()[:7]):
        theirs = lerobot_collate_fn([floats[row[frame]] for frame in batch])
        (ours,) = data.ordered_batches(frames, batch, len(batch))
        assert frames.cameras
        assert all(ours[key].dtype == torch.uint8 for key in frames.cameras)
        assert equal(data.as_floats(ours), theirs)


def test_workers_and_resuming_change_nothing(opened):
    dataset, frames = opened()
    wanted = data.episode_frames(dataset, [0, 1])  # 19 frames: batches of 4 run over the borders of epochs
    torch.manual_seed(0)
    state = torch.get_rng_state()
    alone = take(10, data.training_batches(frames, wanted, batch_size=4, seed=3, workers=0))
    ahead = take(7, data.training_batches(frames, wanted, batch_size=4, seed=3, start_step=3, workers=2))
    assert all(equal(*pair) for pair in zip(alone[3:], ahead, strict=True))
    assert [batch["index"].tolist() for batch in alone] == [data.Order(wanted, 4, 3).rows(step) for step in range(10)]
    assert torch.equal(torch.get_rng_state(), state)
    assert {frame for batch in alone for frame in batch["index"].tolist()} == set(wanted)


def test_transforms_are_drawn_by_seed_step_and_place(opened):
    dataset, frames = opened()
    wanted = data.episode_frames(dataset, range(3))
    noise = {"weight": 1.0, "type": "GaussianNoise", "kwargs": {"std": [20.0, 25.0]}}
    color = {"weight": 1.0, "type": "ColorJitter", "kwargs": {"brightness": [0.5, 1.5]}}
    transforms = data.image_transforms({"enable": True, "max_num_transforms": 2, "tfs": {"noise": noise, "color": color}})

    def batches(count, **given):
        return take(count, data.training_batches(frames, wanted, batch_size=4, **{"seed": 3, "transforms": transforms, **given}))

    torch.manual_seed(0)
    state = torch.get_rng_state()
    alone = batches(10, workers=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(equal(*pair) for pair in zip(alone[2:], batches(8, start_step=2, workers=2), strict=True))
    key = frames.cameras[0]
    plain = take(1, data.training_batches(frames, wanted, batch_size=4, seed=3, workers=0))[0]
    changes = alone[0][key] - data.as_floats(plain)[key]
    assert alone[0][key].dtype == torch.float32
    assert changes.flatten(1).abs().amax(1).min() > 0.02  # noise, which lerobot leaves out on bytes, in every sample
    assert not torch.allclose(changes[0], changes[1])
    other = take(1, data.training_batches(frames, wanted, batch_size=4, seed=3, task=1, transforms=transforms, workers=0))[0]
    assert not torch.equal(other[key], alone[0][key])


def test_transforms_that_lerobot_does_not_know_are_told():
    assert data.image_transforms(None) is data.image_transforms({"enable": False}) is None
    with pytest.raises(UserError, match=r"data.image_transforms: .*'Blurr' is not valid"):
        data.image_transforms({"enable": True, "tfs": {"one": {"type": "Blurr"}}})
    with pytest.raises(UserError, match=r"data.image_transforms: .*'maximum'"):
        data.image_transforms({"enable": True, "maximum": 3})


@given(st.sets(st.integers(0, 60), min_size=1), st.floats(0, 0.5))
def test_held_out_episodes_are_some_of_the_chosen(wanted, share):
    chosen = data.chosen_episodes(sorted(wanted, reverse=True), 61)
    left_out = data.heldout_episodes(share, chosen)
    assert chosen == sorted(wanted)
    assert len(set(left_out)) == int(share * len(chosen))
    assert set(left_out) <= set(chosen)


def test_held_out_frames_are_never_trained_on(opened):
    dataset, frames = opened()
    chosen = data.chosen_episodes([0, 1], dataset.meta.total_episodes)
    left_out = data.heldout_episodes(0.5, chosen)
    assert left_out == [1]
    trained = data.episode_frames(dataset, [one for one in chosen if one not in left_out])
    seen = {frame for batch in take(9, data.training_batches(frames, trained, batch_size=3, seed=0)) for frame in batch["index"].tolist()}
    assert seen == set(range(9))
    assert data.episode_frames(dataset, left_out, every=4) == [9, 13, 17]


def test_episodes_that_are_not_there_are_told():
    assert data.chosen_episodes(None, 3) == [0, 1, 2]
    with pytest.raises(UserError, match=r"data.episodes: the dataset has no episode -1, 3; it has 0 to 2"):
        data.chosen_episodes([0, 3, -1], 3)
    with pytest.raises(UserError, match=r"data.episodes=\[\]"):
        data.chosen_episodes([], 3)


class Slow:
    """Frames that take long, or die of the signal that they are given."""

    in_memory = False
    cameras = ()

    def __init__(self, deadly=None):
        self.deadly = deadly

    def batch(self, frames):
        if self.deadly and 7 in frames:
            os.kill(os.getpid(), self.deadly)
        return {"index": torch.tensor(frames)}


def test_a_worker_that_dies_ends_with_one_message():
    batches = data.training_batches(Slow(signal.SIGKILL), list(range(8)), batch_size=2, seed=0, workers=2)
    with pytest.raises(RunError, match=r"has died.*data\.workers=0") as stopped:
        list(itertools.islice(batches, 9))
    assert stopped.value.__suppress_context__
    assert not multiprocessing.active_children()


def test_workers_end_with_their_batches_and_ignore_ctrl_c():
    received = []
    before = {number: signal.signal(number, lambda *_: received.append(1)) for number in (signal.SIGINT, signal.SIGTERM)}
    chld = signal.getsignal(signal.SIGCHLD)
    try:
        batches = data.training_batches(Slow(), list(range(8)), batch_size=2, seed=0, workers=2)
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        for worker in workers:
            os.kill(worker.pid, signal.SIGINT)
            os.kill(worker.pid, signal.SIGTERM)
        assert len(take(20, batches)) == 20
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert not received
    assert signal.getsignal(signal.SIGCHLD) == chld
    until = time.monotonic() + 20
    while any(worker.is_alive() for worker in workers):
        assert time.monotonic() < until


@pytest.mark.parametrize("workers", [0, 1])
def test_a_frame_that_cannot_be_read_is_named(small_videos, tmp_path, workers):
    import shutil

    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = shutil.copytree(small_videos, tmp_path / "videos")
    (damaged,) = (root / "videos" / CAMERAS[1]).rglob("*.mp4")
    dataset = LeRobotDataset("local/videos", root=root, video_backend="pyav", return_uint8=True)
    damaged.write_bytes(damaged.read_bytes()[:200])
    batches = data.training_batches(data.opened(dataset, 0), [4], batch_size=1, seed=0, workers=workers)
    with pytest.raises(RunError, match=rf"^{CAMERAS[1]}, episode 0, frame 4: .*file-000.mp4: ") as stopped:
        next(batches)
    assert "Traceback" not in str(stopped.value)


def test_workers_only_where_they_help(opened, request):
    _, frames = opened()
    assert (data.helpful_workers(frames) == 0) == (frames.in_memory or len(os.sched_getaffinity(0)) == 1)
    assert data.helpful_workers(frames) <= data.MOST_WORKERS
