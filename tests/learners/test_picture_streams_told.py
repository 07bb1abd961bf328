"""What is told about a stream of pictures: wrong values, damaged files, and settings that it does without."""

from __future__ import annotations

import re
import shutil

import pytest
from PIL import Image

from vla_tune.artifacts.typed import read_json
from vla_tune.config import load_config
from vla_tune.errors import UserError
from vla_tune.learners.pictures import Pictures
from vla_tune.stages import eval_vqa, train


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["stream.tasks=[{name: a}]"], "needs one of two: a manifest"),
        (["stream.tasks=[{name: a, manifest: drawn-signs, tasks: [reach-v3]}]"], "needs one of two: a manifest"),
        (["stream.tasks=[{name: a, manifest: drawn-signs, instructions: [go]}]"], "instructions are a robot's"),
        (["stream.tasks=[{name: a, manifest: metaworld-six}]"], "is of demonstrations"),
        (["stream.reference=shapes"], "its samples are no pictures"),
        (["stream.folder=null", "stream.tasks=[{name: a, manifest: mine.zip}]"], "no data manifest 'mine.zip'; set stream.folder"),
        (["stream.linears=[q_proj,fc3]"], "no linear layer of text, vision is called 'fc3'; did you mean 'fc2'"),
        (["stream.tasks=[{name: a, manifest: drawn-signs}, {name: b, manifest: shapes}]"], "a stream is of one kind"),
        (["stream.parts=[expert]"], "there is no 'expert' here; there are: text, vision"),
        (["policy.base_vlm=demo"], "trains a CLIP, and this is a 'smolvlm' model"),
        (["method.igsp.protect=0.9"], "which a stream of pictures has none of"),
    ],
)
def test_bad_input_is_told_and_leaves_nothing(quick, tmp_path, more, message):
    config = quick("shapes", "textures", more=more)
    with pytest.raises(UserError, match=message):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "train").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["stream.tasks=[{name: ../mine, manifest: drawn-signs}]"], "'../mine': a name is of letters"),
        (["stream.tasks=[{name: '[/x]', manifest: drawn-signs}]"], "a name is of letters"),
        (["stream.folder=nowhere"], "stream.folder=nowhere: there is no such folder"),
        (["stream.tasks=[]"], "it learns a stream of tasks, and stream.tasks is empty"),
        (["method.name=aegis"], "it learns one task, and stream.tasks lists some"),
        (["seed=20000000000000"], "must be at least 0 and at most 4294967295"),
    ],
)
def test_bad_values_of_a_stream_are_told(quick, more, message):
    with pytest.raises(UserError, match=re.escape(message)):
        quick("shapes", "textures", more=more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["vqa.manifest=gqa"], "vqa.manifest=gqa is not used: only a robot's stream reads it; set stream.reference"),
        (["policy.path=mine"], "policy.path=mine is not used: only a robot's stream reads it; set policy.base_vlm"),
        (["data.repo_id=mine"], "data.repo_id=mine is not used: only a robot's stream reads it"),
        (["data.root=mine", "data.repo_id=mine"], "data.root=mine is not used: only a robot's stream reads it"),
        (["data.heldout=0.1"], "data.heldout=0.1 is not used: a stream's train does without it"),
        (["stream.reference=null"], "stream.reference is not set: whatever belongs to no task will be taken for one of the tasks"),
    ],
)
def test_what_only_a_robots_stream_reads_is_told(quick, tmp_path, capsys, more, message):
    train.run(quick("shapes", more=more), tmp_path, plan=True)
    assert message in capsys.readouterr().err


def test_what_is_wrong_is_told_before_an_unfinished_stream_is_touched(quick, tmp_path, stopped_at):
    config = quick("shapes", "textures")
    with stopped_at(Pictures, 9):
        train.run(config, tmp_path)
    left = sorted(file.name for file in (tmp_path / "train.partial").rglob("*"))
    with pytest.raises(UserError, match="typo"):
        train.run(quick("shapes", "textures", more=["stream.reference=typo"]), tmp_path, overwrite=True)
    assert sorted(file.name for file in (tmp_path / "train.partial").rglob("*")) == left
    (tmp_path / "train.partial" / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json is missing or damaged"):
        train.run(config, tmp_path, resume=True)


def test_a_damaged_checkpoint_is_named_and_an_older_one_serves(quick, tmp_path, stopped_at):
    config, checkpoints = quick("shapes"), tmp_path / "train.partial" / "checkpoints"
    with stopped_at(Pictures, 3):
        train.run(config, tmp_path)
    assert sorted(folder.name for folder in checkpoints.iterdir()) == ["2", "3"]
    with pytest.raises(UserError, match="holds an unfinished run; give --resume to go on from task 1"):
        train.run(config, tmp_path)
    moments = checkpoints / "3" / "training_state" / "optimizer_state.safetensors"
    moments.write_bytes(moments.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"3: training_state/optimizer_state\.safetensors is missing or was changed.*remove it"):
        train.run(config, tmp_path, resume=True)
    shutil.rmtree(checkpoints / "3")
    assert train.run(config, tmp_path, resume=True).metrics["steps"] == 6


def test_a_damaged_picture_is_named(quick_overrides, tmp_path):
    for split, number in (("train", 0), ("train", 1), ("test", 2)):
        Image.effect_noise((48, 48), 80).save(tmp_path / f"{number}.png")
        with (tmp_path / "index.csv").open("a") as index:
            index.write("" if number else "file,label,split\n")
            index.write(f"{number}.png,{'ab'[number % 2]},{split}\n")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    config = load_config("stream-drawn", [*quick_overrides, f"stream.tasks=[{{name: mine, manifest: {tmp_path}}}]"])
    with pytest.raises(UserError, match=r"index\.csv, row 2: 1\.png: the picture is damaged"):
        train.run(config, tmp_path / "run")


def test_settings_that_a_stream_does_without_are_told(quick, tmp_path, capsys):
    more = ["method.name=moe_adapters", "stream.linears=[fc1]", "vqa.ranked=5"]
    config = quick("shapes", more=more)
    train.run(config, tmp_path)
    eval_vqa.run(config, tmp_path)
    told = " ".join(capsys.readouterr().err.split())
    assert "stream.linears=['fc1'] is not used" in told
    assert "vqa.ranked=5 is not used" in told


def test_real_pictures_make_a_stream(quick_overrides, third_party_data, tmp_path):
    more = ["train.steps=2", "method.igsp.check_every=1", f"stream.folder={third_party_data}"]
    config = load_config("stream-images", [*quick_overrides, *more])
    train.run(config, tmp_path)
    eval_vqa.run(config, tmp_path)
    assert len(read_json(tmp_path / "eval-vqa" / "report.json")["stream"]["matrix"]) == 6
