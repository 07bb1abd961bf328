"""The whole look at a dataset: sound ones are silent, and of a damaged one the thing is named before anything is made."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from odd import CAMERA, FRONT, rewrite_column, vector

from vla_tune.config import load_config
from vla_tune.data.demonstrations import known_metadata
from vla_tune.data.identity import check_identity, keep_identity
from vla_tune.errors import UserError
from vla_tune.preflight.look import look

SIZES = ["policy.settings.max_state_dim=4", "policy.settings.max_action_dim=4", "policy.settings.tokenizer_max_length=24"]


@pytest.fixture(scope="module")
def sound(written, tmp_path_factory):
    """A dataset that nothing is odd with."""
    features = {FRONT: CAMERA, "observation.state": vector(4), "action": vector(4)}
    return written(tmp_path_factory.mktemp("sound") / "dataset", features, episodes=4, frames=6)


@pytest.fixture
def copy(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "dataset")


def looked(root, *overrides):
    """What stops, and what is told."""
    config = load_config("demo", ["data.manifest=null", "data.repo_id=local/odd", f"data.root={root}", *SIZES, *overrides])
    found = list(look(config, known_metadata(config.data)))
    return [one.text for one in found if one.stops], [one.text for one in found if not one.stops]


def edit_json(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_a_sound_one_is_silent_and_untouched(copy):
    before = {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()}
    assert looked(copy) == ([], [])
    assert {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()} == before


def put(row, place, value):
    def change(rows):
        rows[row][place] = value
        return rows

    return change


def stats(change):
    return lambda root: edit_json(root / "meta" / "stats.json", change)


def narrower(content):
    content["action"] = {name: value[:3] if len(value) == 4 else value for name, value in content["action"].items()}


def without_a_task(root):
    file = root / "meta" / "tasks.parquet"
    tasks = pq.read_table(file)
    pq.write_table(tasks.slice(0, 1), file)


STOPS = {
    "fewer episodes in info.json": (
        lambda root: edit_json(root / "meta" / "info.json", lambda info: info.update(total_episodes=2, total_frames=12)),
        ["2 episodes of 12 frames", "4 episodes of 24 frames"],
    ),
    "a missing table": (lambda root: next(root.glob("data/*/*.parquet")).unlink(), ["data/chunk-000/file-000.parquet is missing"]),
    "an instruction that is not there": (without_a_task, ["task_index 1", "episode 1"]),
    "no number": (lambda root: rewrite_column(root, "action", put(8, 2, float("nan"))), ["'action'[2] is nan", "episode 1, frame 2"]),
    "infinity": (lambda root: rewrite_column(root, "observation.state", put(0, 0, float("inf"))), ["'observation.state'[0] is inf"]),
    "an index that restarts": (lambda root: rewrite_column(root, "index", lambda rows: [row % 6 for row in rows]), ["'index'", "row 6"]),
    "statistics of no numbers": (stats(lambda content: content["action"].update(mean=[None] * 4)), ["'action'", "recompute_stats"]),
    "statistics of another width": (stats(narrower), ["'action'", "recompute_stats"]),
}


@pytest.mark.parametrize("name", STOPS)
def test_what_would_be_wrong_is_named(copy, name):
    damage, words = STOPS[name]
    damage(copy)
    stops, _ = looked(copy)
    assert len(stops) == 1
    assert [word for word in words if word not in stops[0]] == []


def test_a_cut_table_is_named(copy):
    (file,) = copy.glob("data/*/*.parquet")
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"file-000\.parquet cannot be read"):
        looked(copy)


def test_of_episodes_that_are_left_out_the_numbers_do_not_count(copy):
    rewrite_column(copy, "action", put(8, 2, float("nan")))
    assert looked(copy, "data.episodes=[0,2,3]", "data.heldout=0") == ([], [])


def test_a_constant_and_statistics_of_another_robot_are_told(copy):
    rewrite_column(copy, "action", lambda rows: [[*row[:3], 0.5] for row in rows])
    edit_json(copy / "meta" / "stats.json", lambda content: content["action"]["std"].__setitem__(3, 0.0))
    edit_json(copy / "meta" / "stats.json", lambda content: content["action"]["mean"].__setitem__(3, 0.5))
    edit_json(copy / "meta" / "stats.json", lambda content: content["observation.state"].update(std=[1e-3] * 4))
    stops, told = looked(copy)
    assert stops == []
    assert "'action'[3] never changes; it is not scaled" in told
    assert any("'observation.state'" in one and "%" in one for one in told)


def test_a_table_in_another_order_is_read_by_its_index(copy):
    file = copy / "meta" / "tasks.parquet"
    tasks = pq.read_table(file)
    pq.write_table(tasks.take(np.arange(tasks.num_rows)[::-1]), file)
    assert looked(copy) == ([], [])


def test_a_dataset_that_changed_is_no_longer_what_training_read(copy, tmp_path):
    def meta():
        return known_metadata(load_config("demo", ["data.manifest=null", "data.repo_id=local/odd", f"data.root={copy}"]).data)

    check_identity(tmp_path, meta(), "train again")  # an earlier version kept nothing
    keep_identity(tmp_path, meta())
    check_identity(tmp_path, meta(), "train again")
    edit_json(copy / "meta" / "stats.json", lambda content: content["action"]["mean"].__setitem__(0, 9.0))
    with pytest.raises(UserError, match="statistics changed; train again"):
        check_identity(tmp_path, meta(), "train again")
