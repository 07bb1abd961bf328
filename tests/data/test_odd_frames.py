"""Batches of datasets with something odd: what is read is right, the rest is left out, in memory as one by one."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from PIL import Image

from vla_tune.data import batches as data
from vla_tune.errors import RunError, UserError

CAMERA = {"dtype": "image", "shape": (16, 24, 3), "names": ["height", "width", "channels"]}
FRONT, DEPTH = "observation.images.front", "observation.images.depth"
FEATURES = {
    FRONT: CAMERA,
    DEPTH: {**CAMERA, "shape": (16, 24, 1), "info": {"is_depth_map": True}},
    "observation.state": {"dtype": "int64", "shape": (1,), "names": None},
    "observation.touch": {"dtype": "float32", "shape": (2, 2), "names": None},
    "observation.operator": {"dtype": "string", "shape": (1,), "names": None},
    "action": {"dtype": "float64", "shape": (1,), "names": None},
}
FRAMES = 4


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Three episodes of four frames with a depth camera, an array, a text, and a robot of one joint that counts in integers."""
    root = tmp_path_factory.mktemp("odd") / "dataset"
    dataset = LeRobotDataset.create("local/odd", fps=10, features=FEATURES, root=root, use_videos=False)
    rng = np.random.default_rng(0)
    for number in range(3 * FRAMES):
        frame = {
            FRONT: rng.integers(0, 256, (16, 24, 3), dtype=np.uint8),
            DEPTH: rng.integers(300, 4000, (16, 24, 1)).astype(np.uint16),
            "observation.state": np.array([number]),
            "observation.touch": np.zeros((2, 2), np.float32),
            "observation.operator": "somebody",
            "action": np.array([number / 10]),
        }
        dataset.add_frame({**frame, "task": "Wave"})
        if number % FRAMES == FRAMES - 1:
            dataset.save_episode()
    dataset.finalize()
    return root


@pytest.fixture
def changed(odd, tmp_path):
    """A function that stores picture `row` again, or all of them, as `make(content)` has it; the dataset's folder."""

    def change(make, row=None):
        root = shutil.copytree(odd, tmp_path / "dataset")
        (file,) = root.rglob("data/**/*.parquet")
        table = pq.read_table(file)
        entries = table[FRONT].to_pylist()
        for number in range(len(entries)) if row is None else [row]:
            entries[number]["bytes"] = make(entries[number]["bytes"])
        place = table.column_names.index(FRONT)
        pq.write_table(table.set_column(place, table.schema.field(FRONT), pa.array(entries, table.schema.field(FRONT).type)), file)
        return root

    return change


def stored_as(mode):
    def make(content):
        again = io.BytesIO()
        Image.open(io.BytesIO(content)).convert(mode).save(again, "PNG")
        return again.getvalue()

    return make


def smaller(content):
    again = io.BytesIO()
    Image.open(io.BytesIO(content)).resize((12, 8)).save(again, "PNG")
    return again.getvalue()


def frames_of(root, cache_mb, episodes=None):
    windows = {"action": [0.0, 0.1], "observation.state": [0.0], FRONT: [0.0], "observation.operator": [0.0]}
    return data.open_frames(LeRobotDataset("local/odd", root=root, episodes=episodes, delta_timestamps=windows), cache_mb)


@pytest.fixture(params=[0, 1000], ids=["one by one", "in memory"])
def cache_mb(request):
    return request.param


def test_what_no_policy_reads_is_left_out(odd, cache_mb):
    frames = frames_of(odd, cache_mb)
    assert frames.cameras == [FRONT]
    assert frames.in_memory == bool(cache_mb)
    batch = frames.batch([0, 5, 11])
    assert not {key for key in batch if key.startswith((DEPTH, "observation.touch", "observation.operator"))}
    assert batch["task"] == ["Wave"] * 3


def test_one_joint_is_a_vector_and_integers_are_floats(odd, cache_mb):
    """lerobot brings statistics to the type of what they scale: of integers nothing would be left of them."""
    batch = frames_of(odd, cache_mb).batch([0, 5, 11])
    assert torch.equal(batch["observation.state"], torch.tensor([[[0.0]], [[5.0]], [[11.0]]]))
    assert torch.equal(batch["action"], torch.tensor([[[0.0], [0.1]], [[0.5], [0.6]], [[1.1], [1.1]]]))
    assert batch["action_is_pad"].tolist() == [[False, False], [False, False], [False, True]]


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "1"])
def test_pictures_of_every_mode_are_rgb(changed, odd, cache_mb, mode):
    batch = frames_of(changed(stored_as(mode)), cache_mb).batch([3, 9])
    assert batch[FRONT].dtype == torch.uint8
    (file,) = odd.rglob("data/**/*.parquet")
    for row, found in zip((3, 9), batch[FRONT], strict=True):
        picture = Image.open(io.BytesIO(pq.read_table(file)[FRONT][row].as_py()["bytes"]))
        assert np.array_equal(found[0].permute(1, 2, 0).numpy(), np.asarray(picture.convert(mode).convert("RGB")))


@pytest.mark.parametrize(("spoil", "words"), [(lambda content: content[:200], "damaged"), (smaller, "12 x 8 pixels, and .* 24 x 16")])
def test_a_picture_that_cannot_be_read_is_named(changed, cache_mb, spoil, words):
    root = changed(spoil, row=6)
    message = rf"^{FRONT}, episode 1, frame 2: .*{words}"
    if cache_mb:
        with pytest.raises(UserError, match=message):
            frames_of(root, cache_mb)
    else:
        frames = frames_of(root, cache_mb)
        assert frames.batch([5, 7])[FRONT].shape == (2, 1, 3, 16, 24)
        with pytest.raises(RunError, match=message):
            next(data.ordered_batches(frames, [5, 6, 7], 3))
    assert frames_of(root, cache_mb, episodes=[0, 2]).batch([3, 9])["index"].tolist() == [3, 9]
