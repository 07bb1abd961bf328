"""A real robot's recording, of lerobot's former format and with video: told, converted, and run through every stage without a world."""

import json
import os
import shutil
import subprocess
import sys
import tarfile

import pytest

from vla_tune.config import load_config
from vla_tune.errors import UserError
from vla_tune.stages import anchor, eval_rollout, train


@pytest.fixture(scope="module")
def recording(third_party_data, tmp_path_factory):
    """The Unitree G1 that picks up a bottle, twice, as it was published."""
    archive = third_party_data / "robot_g1_bottle_v21_2ep.tar"
    if not archive.is_file():
        pytest.skip(f"{archive} is not there")
    folder = tmp_path_factory.mktemp("g1")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder / "g1_bottle"


@pytest.fixture(scope="module")
def config(recording):
    def make(*more):
        shape = ["policy.settings.max_state_dim=26", "policy.settings.max_action_dim=26", "policy.settings.chunk_size=50"]
        data = [
            "data.manifest=null",
            "data.repo_id=local/g1",
            f"data.root={recording}",
            "data.heldout=0.5",
            "data.cache_mb=0",
            "data.heldout_frames=4",
        ]
        size = ["train.steps=2", "train.batch_size=2", "train.warmup_steps=1", "anchor.samples=8", "anchor.frames=2", "anchor.batch_size=4"]
        return load_config("demo", [*shape, *data, *size, "rollout.tasks=[]", "rollout.n_action_steps=50", "anchor.gradients=4", *more])

    return make


def test_the_former_format_stops_with_the_converters_command(config, recording, tmp_path):
    with pytest.raises(UserError, match="convert_dataset_v21_to_v30 --repo-id=local/g1") as stopped:
        train.run(config("method.name=full"), tmp_path)
    command = str(stopped.value).partition("convert it with: ")[2].split()
    assert command[0] == "python"
    subprocess.run([sys.executable, *command[1:]], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True)
    assert json.loads((recording / "meta" / "info.json").read_text())["codebase_version"] == "v3.0"
    shutil.rmtree(recording.with_name("g1_bottle_old"), ignore_errors=True)

    made = config("method.name=subspace")
    anchor.run(made, tmp_path)
    train.run(made, tmp_path)
    eval_rollout.run(made, tmp_path)
    offline = json.loads((tmp_path / "eval-rollout" / "report.json").read_text())["offline"]
    assert len(offline["by_joint"]) == 26
    assert "kRightHandThumbRotation" in offline["by_joint"]
    assert offline["episodes"] == 1
    assert set(offline["action_moved"]) == {"empty"}  # one task: there is no other instruction
    assert all(row["value"] > 0 for row in offline["by_joint"].values())


@pytest.mark.parametrize("version", ["v2.0", "v1.6"])
def test_older_formats_are_told_what_can_be_done(config, recording, tmp_path, version):
    root = tmp_path / "old"
    (root / "meta").mkdir(parents=True)
    info = json.loads((recording / "meta" / "info.json").read_text())
    (root / "meta" / "info.json").write_text(json.dumps({**info, "codebase_version": version}))
    with pytest.raises(UserError, match=rf"format {version}, which this lerobot cannot convert"):
        train.run(config("method.name=full", f"data.root={root}"), tmp_path / "run")
