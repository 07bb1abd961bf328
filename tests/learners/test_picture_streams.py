"""Streams of pictures end to end: training, resuming, appending, scoring, and what is kept."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from after_tasks import assert_equal, states
from PIL import Image
from safetensors.torch import load_file

from vla_tune.config import STRATEGIES, StreamTask, load_config
from vla_tune.engine import after, checkpoint
from vla_tune.engine.run import Run
from vla_tune.errors import UserError
from vla_tune.learners.pictures import Pictures
from vla_tune.reports.runs import read_json, read_table
from vla_tune.resources import demo_clip
from vla_tune.stages import eval_rollout, eval_vqa, evaluate, train
from vla_tune.stages.opening import open_method


def fails_with(error):
    def fail(*_):
        raise error

    return fail


def newest(run):
    """The newest checkpoint's tensors."""
    folder, _ = checkpoint.newest(run / "train.partial")
    return load_file(folder / "state.safetensors")


def logged(run):
    """The log of a training, without times."""
    rows = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.endswith("_s")} for row in rows]


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_learns_a_stream_and_is_scored(quick, tmp_path, name):
    config = quick("shapes", "textures", more=[f"method.name={name}"])
    train.run(config, tmp_path)
    artifact = eval_vqa.run(config, tmp_path)
    report = read_json(tmp_path / "eval-vqa" / "report.json")["stream"]
    assert len(report["matrix"]) == len(report["matrix"][0]) == 2
    assert artifact.metrics["last"] == pytest.approx(sum(report["matrix"][-1]) / 2)
    assert report["figures"]["last"]["low"] <= report["figures"]["last"]["value"] <= report["figures"]["last"]["high"]
    cells = read_table(tmp_path / "eval-vqa" / "cells.parquet")
    last = [row["score"] for row in cells if row["after"] == "textures" and row["task"] == "shapes"]
    assert sum(last) / len(last) == pytest.approx(report["matrix"][1][0])
    routes = name not in ("full", "lora", "shared", "replay")
    assert (report.get("last_by_given") is not None) == routes
    assert (report["parameters"]["task_router"] > 0) == routes
    added = report["parameters"]["added"]
    assert (added == [0, 0]) == (name in ("full", "replay"))


LONG = ["train.steps=24", "method.igsp.agreement=1", "train.checkpoint_every=5"]
"""Phase 1 looks at its routers six times and ends after 12 steps."""


@pytest.mark.parametrize(
    ("name", "step", "more"),
    [
        ("igsp", 1, []),
        ("igsp", 3, []),
        ("igsp", 9, []),
        ("igsp", 9, ["method.igsp.routing=task"]),
        ("igsp", 30, LONG),
        ("moe_adapters", 9, []),
        ("replay", 9, []),
        ("shared", 9, []),
    ],
)
def test_train_equals_train_and_resume(quick, tmp_path, stopped_at, name, step, more):
    config = quick("shapes", "textures", more=[f"method.name={name}", *more])
    train.run(config, tmp_path / "whole")
    with stopped_at(Pictures, step):
        train.run(config, tmp_path / "parts")
    assert any(key.startswith("before:") for key in newest(tmp_path / "parts")) == (more == LONG)
    train.run(config, tmp_path / "parts", resume=True)
    assert_equal(states(tmp_path / "whole"), states(tmp_path / "parts"))
    whole, parts = (read_json(tmp_path / run / "train" / "stream.json") for run in ("whole", "parts"))
    assert whole == parts
    assert logged(tmp_path / "whole") == logged(tmp_path / "parts")


def test_a_task_that_leaves_nothing_to_train_can_be_gone_on_with(quick, tmp_path, monkeypatch):
    config = quick("shapes", more=[*LONG, "method.igsp.price=1", "train.log_every=100"])
    train.run(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_leave", fails_with(OSError("no space")))
        with pytest.raises(OSError, match="no space"):
            train.run(config, tmp_path / "parts")
    train.run(config, tmp_path / "parts", resume=True)
    assert [record["new"] for record in read_json(tmp_path / "parts" / "train" / "stream.json")["records"]] == [0]
    assert_equal(states(tmp_path / "whole"), states(tmp_path / "parts"))
    assert logged(tmp_path / "whole") == logged(tmp_path / "parts")


@pytest.mark.parametrize("name", ["igsp", "full"])
def test_a_finished_stream_takes_on_another_task(quick, tmp_path, name):
    more = [f"method.name={name}"]
    train.run(quick("shapes", "textures", "again", more=more), tmp_path / "whole")
    train.run(quick("shapes", "textures", more=more), tmp_path / "longer")
    train.run(quick("shapes", "textures", "again", more=more), tmp_path / "longer", resume=True)
    assert_equal(states(tmp_path / "whole"), states(tmp_path / "longer"))


def test_what_was_learnt_stays_to_the_bit_where_tasks_are_told_apart_rightly(quick, tmp_path):
    config = quick("shapes", "textures")
    train.run(config, tmp_path)
    left = states(tmp_path)
    first, last = left["0.safetensors"], left["1.safetensors"]
    own = [name for name in first if not name.startswith("tasks:")]
    assert own
    assert all(torch.equal(first[name], last[name]) for name in own)


@pytest.mark.parametrize("method", [["method.name=lora_per_task"], ["method.igsp.routing=task", "method.igsp.threshold=0"]])
def test_the_saved_model_is_the_stock_one_and_a_merged_one_knows_its_task(quick, tmp_path, method):
    from transformers import CLIPModel

    config = quick("shapes", "textures", more=[*method, "stream.merged=true"])
    train.run(config, tmp_path)
    base, saved = CLIPModel.from_pretrained(demo_clip(), dtype=torch.float32), CLIPModel.from_pretrained(tmp_path / "train" / "clip")
    assert all(torch.equal(tensor, saved.state_dict()[name]) for name, tensor in base.state_dict().items())
    method = open_method(config)
    after.restore(tmp_path / "train", 1, method)
    pixels = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    for task, name in enumerate(("shapes", "textures")):
        merged = CLIPModel.from_pretrained(tmp_path / "train" / "merged" / name / "clip").eval()
        with torch.no_grad(), method.routed(task):
            ours = method.learner.model.get_image_features(pixel_values=pixels).pooler_output
            theirs = merged.get_image_features(pixel_values=pixels).pooler_output
        assert torch.allclose(ours, theirs, atol=1e-5)
        assert not torch.allclose(theirs, base.eval().get_image_features(pixel_values=pixels).pooler_output, atol=1e-5)


def test_experts_are_shared_by_related_tasks_and_not_by_unrelated_ones(tmp_path):
    config = load_config("stream-drawn", ["train.steps=60", "vqa.questions=120", "vqa.bootstrap=50"])
    train.run(config, tmp_path)
    eval_vqa.run(config, tmp_path)
    report = read_json(tmp_path / "eval-vqa" / "report.json")["stream"]
    first, again, mirrored, other = report["parameters"]["records"]
    assert 4 * max(again["new"], mirrored["new"]) <= min(first["new"], other["new"])
    reused = [record["old"] / (record["old"] + record["new"]) for record in (again, mirrored, other)]
    assert min(reused[:2]) > 0.8
    assert reused[2] < 0.5
    assert min(report["matrix"][-1]) > 0.5  # it learnt them all; chance is an eighth and less
    assert report["reference"]["retention"]["value"] > 0.97


def test_without_a_price_more_experts_stay(quick, tmp_path):
    new = {}
    for price in (0.0, 1.0):
        config = quick("shapes", more=[*LONG, f"method.igsp.price={price}"])
        train.run(config, tmp_path / str(price))
        new[price] = read_json(tmp_path / str(price) / "train" / "stream.json")["records"][0]["new"]
    assert new[1.0] == 0  # and then there is nothing to train in phase 2
    assert new[0.0] > 20


def test_random_pruning_keeps_as_many_others(quick, tmp_path):
    kept, counts = {}, set()
    for name, pruning, seed in (("ours", "probability", 0), ("random", "random", 0), ("another", "random", 1)):
        train.run(quick("shapes", more=[f"method.igsp.pruning={pruning}", f"seed={seed}"]), tmp_path / name)
        record = read_json(tmp_path / name / "train" / "stream.json")["records"][0]
        kept[name] = {(layer, one) for layer, shares in record["shares"].items() for one in shares if one != "base"}
        counts.add((seed, record["new"]))
    assert len(counts) == 2
    assert len(kept["ours"]) == len(kept["random"]) > 0
    assert kept["ours"] != kept["random"]
    assert kept["random"] - kept["another"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["stream.tasks=[{name: a}]"], "needs one of two: a manifest"),
        (["stream.tasks=[{name: a, manifest: drawn-signs, tasks: [reach-v3]}]"], "needs one of two: a manifest"),
        (["stream.tasks=[{name: a, manifest: drawn-signs, instructions: [go]}]"], "instructions are a robot's"),
        (["stream.tasks=[{name: a, manifest: metaworld-six}]"], "is of demonstrations"),
        (["stream.reference=shapes"], "its samples are no pictures"),
        (["stream.tasks=[{name: a, manifest: mine.zip}]"], "no data manifest 'mine.zip'; set stream.folder"),
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
        (["data.root=mine"], "data.root=mine is not used: only a robot's stream reads it"),
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
    with pytest.raises(UserError, match=r"mine, train: the picture .*1\.png is damaged"):
        train.run(config, tmp_path / "run")


def test_a_stream_is_gone_on_with_only_as_it_began(quick, tmp_path):
    train.run(quick("shapes", "textures", more=["method.name=moe_adapters"]), tmp_path)
    for config, message in (
        (quick("shapes", "textures", more=["method.name=moe_adapters"]), "is finished"),
        (quick("textures", "shapes", "again", more=["method.name=moe_adapters"]), "began with other tasks"),
        (quick("shapes", "textures", "again", more=["method.name=moe_adapters"]), "lays out its experts"),
        (quick("shapes", "textures", "again", more=["method.name=igsp"]), "method.name was"),
    ):
        with pytest.raises(UserError, match=message):
            train.run(config, tmp_path, resume=True)
    with pytest.raises(UserError, match="exists already"):
        train.run(quick("shapes", "textures"), tmp_path)
    with pytest.raises(UserError, match="no world to act in"):
        eval_rollout.run(quick("shapes", "textures"), tmp_path)
    with pytest.raises(UserError, match="has learnt the tasks shapes, textures"):
        eval_vqa.run(quick("shapes"), tmp_path)
    other = quick("textures", "shapes", more=["method.name=moe_adapters"])
    other.stream.tasks = [StreamTask(name, task.manifest) for name, task in zip(("shapes", "textures"), other.stream.tasks, strict=True)]
    with pytest.raises(UserError, match=r"has learnt .*invented-shapes.* and stream.tasks has .*invented-textures"):
        eval_vqa.run(other, tmp_path)
    with pytest.raises(UserError, match=r"was trained with other values: policy\.base_vlm was demo-clip, is elsewhere"):
        eval_vqa.run(quick("shapes", "textures", more=["method.name=moe_adapters", "policy.base_vlm=elsewhere"]), tmp_path)


def test_an_interrupted_evaluation_goes_on(quick, tmp_path, monkeypatch, capsys):
    config = quick("shapes", "textures")
    train.run(config, tmp_path)
    scored, plain = [], Pictures._score

    def score(self, *arguments):
        scored.append(arguments)
        if len(scored) == 5:
            raise KeyboardInterrupt
        return plain(self, *arguments)

    monkeypatch.setattr(Pictures, "_score", score)
    with pytest.raises(KeyboardInterrupt):
        eval_vqa.run(config, tmp_path)
    damaged = tmp_path / "eval-vqa.partial" / "scored" / "0-0-sample.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-8])
    eval_vqa.run(config, tmp_path)
    assert "going on after 4 cells" in capsys.readouterr().out
    monkeypatch.undo()
    again = len(scored) - 5
    report = (tmp_path / "eval-vqa" / "report.json").read_text()
    eval_vqa.run(config, tmp_path, overwrite=True)
    assert (tmp_path / "eval-vqa" / "report.json").read_text() == report
    assert again == 9  # of 12, without the three of the first four that are whole
    assert {file.name for file in (tmp_path / "eval-vqa").iterdir()} == {"artifact.json", "cells.parquet", "report.json"}


def test_scores_of_other_settings_are_dropped(quick, tmp_path, monkeypatch, capsys):
    config = quick("shapes", more=["vqa.questions=8"])
    train.run(config, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("vla_tune.evaluation.matrix.figures", fails_with(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            eval_vqa.run(config, tmp_path)
    eval_vqa.run(quick("shapes"), tmp_path)
    assert "scores of another model or of other settings; they are dropped" in " ".join(capsys.readouterr().err.split())
    assert read_json(tmp_path / "eval-vqa" / "report.json")["stream"]["n"] == [16]


def test_eval_leaves_out_the_world_that_pictures_have_none_of(quick, tmp_path):
    config = quick("shapes", "textures")
    train.run(config, tmp_path)
    evaluate.run(config, tmp_path)
    assert {folder.name for folder in tmp_path.iterdir()} == {"train", "eval-vqa", "report"}


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
