"""A frame that cannot be read ends a run with one message, after a checkpoint of what was learnt; mended, the run goes on."""

import itertools
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vla_tune.data.batches import Order
from vla_tune.errors import RunError, UserError
from vla_tune.stages import train

KEY, FRAMES = "observation.image", 40


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """Two episodes of forty frames."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = tmp_path_factory.mktemp("long") / "dataset"
    vector = {"dtype": "float32", "shape": (4,), "names": None}
    picture = {"dtype": "image", "shape": (16, 16, 3), "names": ["height", "width", "channels"]}
    features = {KEY: picture, "observation.state": vector, "action": vector}
    dataset = LeRobotDataset.create("local/long", fps=10, features=features, root=root, use_videos=False)
    rng = np.random.default_rng(0)
    for _ in range(2):
        for _ in range(FRAMES):
            vectors = {key: rng.normal(size=4).astype(np.float32) for key in ("observation.state", "action")}
            dataset.add_frame({KEY: rng.integers(0, 256, (16, 16, 3), dtype=np.uint8), **vectors, "task": "Wave"})
        dataset.save_episode()
    dataset.finalize()
    return root


@pytest.fixture
def spoilt(long, tmp_path):
    """A copy of the dataset in which a picture that no sample of it meets is cut, and the first step that reads it."""
    from vla_tune.data.demonstrations import open_metadata
    from vla_tune.preflight.pictures import sample

    seen = {row.row for row in sample(open_metadata("local/long", long), [0, 1], 48)}
    order = Order(range(2 * FRAMES), 4, 0)
    step, row = next((step, row) for step in itertools.count(3) for row in order.rows(step - 1) if row not in seen)
    root = shutil.copytree(long, tmp_path / "dataset")
    (file,) = root.rglob("data/**/*.parquet")
    table = pq.read_table(file)
    entries = table[KEY].to_pylist()
    entries[row]["bytes"] = entries[row]["bytes"][:150]
    field = table.schema.field(KEY)
    pq.write_table(table.set_column(table.column_names.index(KEY), field, pa.array(entries, type=field.type)), file)
    return root, step, row


@pytest.fixture
def config_of(small_config):
    def make(root, *more):
        sizes = [f"train.steps={20}", "train.checkpoint_every=100", "data.cache_mb=0"]
        return small_config("data.repo_id=local/long", f"data.root={root}", *sizes, *more)

    return make


def steps_in(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_steps_before_have_a_checkpoint_from_which_the_mended_run_goes_on(config_of, long, spoilt, tmp_path, workers):
    root, step, row = spoilt
    config = config_of(root, f"data.workers={workers}")
    frame = f"{KEY}, episode {row // FRAMES}, frame {row % FRAMES}: the picture is damaged"
    with pytest.raises(RunError) as stopped:
        train.run(config, tmp_path / "run")
    assert str(stopped.value).startswith(frame)
    assert f"the checkpoint of step {step - 1} is safe in {tmp_path / 'run' / 'train.partial'}" in str(stopped.value)
    assert steps_in(tmp_path / "run" / "train.partial") == list(range(1, step))
    with pytest.raises(RunError, match=f"the checkpoint of step {step - 1} is safe"):
        train.run(config, tmp_path / "run", resume=True)  # still the same, and nothing is written anew

    (damaged,), (sound,) = root.rglob("data/**/*.parquet"), long.rglob("data/**/*.parquet")
    shutil.copy(sound, damaged)
    train.run(config, tmp_path / "run", resume=True)
    assert steps_in(tmp_path / "run" / "train") == list(range(1, 21))


def test_what_is_read_into_memory_is_read_before_there_is_a_run(config_of, spoilt, tmp_path):
    root, _, row = spoilt
    with pytest.raises(UserError, match=f"^{KEY}, episode {row // FRAMES}, frame {row % FRAMES}: the picture is damaged"):
        train.run(config_of(root, "data.cache_mb=100"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train.run(
        config_of(root, "data.cache_mb=100", f"data.episodes=[{1 - row // FRAMES}]", "data.heldout=0", "train.steps=1"), tmp_path / "run"
    )
