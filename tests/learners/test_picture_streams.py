"""Streams of pictures end to end: training, resuming, appending, scoring, and what is kept."""

from __future__ import annotations

import pytest
import torch
from after_tasks import assert_equal, fails_with, logged, states
from safetensors.torch import load_file

from vla_tune.artifacts.typed import read_json
from vla_tune.config import STRATEGIES, StreamTask, load_config
from vla_tune.engine import after, checkpoint
from vla_tune.engine.run import Run
from vla_tune.errors import UserError
from vla_tune.learners.pictures import Pictures
from vla_tune.reports.runs import read_table
from vla_tune.resources import demo_clip
from vla_tune.stages import eval_rollout, eval_vqa, evaluate, train
from vla_tune.stages.opening import open_method


def newest(run):
    """The newest checkpoint's tensors."""
    folder, _ = checkpoint.newest(run / "train.partial")
    return load_file(folder / "state.safetensors")


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_learns_a_stream_and_is_scored(quick, copied, tmp_path, name):
    config = quick("shapes", "textures", more=[f"method.name={name}"])
    copied(config)
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
def test_train_equals_train_and_resume(quick, trained, tmp_path, stopped_at, name, step, more):
    config = quick("shapes", "textures", more=[f"method.name={name}", *more])
    made = trained(config)
    with stopped_at(Pictures, step):
        train.run(config, tmp_path / "parts")
    assert any(key.startswith("before:") for key in newest(tmp_path / "parts")) == (more == LONG)
    train.run(config, tmp_path / "parts", resume=True)
    assert_equal(states(made), states(tmp_path / "parts"))
    whole, parts = (read_json(run / "train" / "stream.json") for run in (made, tmp_path / "parts"))
    assert whole == parts
    assert logged(made) == logged(tmp_path / "parts")


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
def test_a_finished_stream_takes_on_another_task(quick, copied, tmp_path, name):
    more = [f"method.name={name}"]
    train.run(quick("shapes", "textures", "again", more=more), tmp_path / "whole")
    copied(quick("shapes", "textures", more=more), "longer")
    train.run(quick("shapes", "textures", "again", more=more), tmp_path / "longer", resume=True)
    assert_equal(states(tmp_path / "whole"), states(tmp_path / "longer"))


def test_what_was_learnt_stays_to_the_bit_where_tasks_are_told_apart_rightly(quick, trained):
    left = states(trained(quick("shapes", "textures")))
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
    config = load_config("stream-drawn", ["train.steps=40", "vqa.questions=96", "vqa.bootstrap=50"])
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


def test_a_stream_is_gone_on_with_only_as_it_began(quick, copied, tmp_path):
    copied(quick("shapes", "textures", more=["method.name=moe_adapters"]))
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


def test_an_interrupted_evaluation_goes_on(quick, copied, tmp_path, monkeypatch, capsys):
    config = quick("shapes", "textures")
    copied(config)
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
    again = len(scored) - 5
    report = (tmp_path / "eval-vqa" / "report.json").read_text()
    scored.clear()
    scored.extend([()] * 5)  # none of the next is interrupted
    eval_vqa.run(config, tmp_path, overwrite=True)
    assert (tmp_path / "eval-vqa" / "report.json").read_text() == report
    assert again == len(scored) - 5 - 3  # all but the three of the first four that are whole
    assert {file.name for file in (tmp_path / "eval-vqa").iterdir()} == {"artifact.json", "cells.parquet", "report.json"}


def test_scores_of_other_settings_are_dropped(quick, copied, tmp_path, monkeypatch, capsys):
    config = quick("shapes", more=["vqa.questions=8"])
    copied(config)
    with monkeypatch.context() as patch:
        patch.setattr("vla_tune.evaluation.matrix.figures", fails_with(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            eval_vqa.run(config, tmp_path)
    eval_vqa.run(quick("shapes"), tmp_path)
    assert "scores of another model or of other settings; they are dropped" in " ".join(capsys.readouterr().err.split())
    assert read_json(tmp_path / "eval-vqa" / "report.json")["stream"]["n"] == [16]


def test_eval_leaves_out_the_world_that_pictures_have_none_of(quick, copied, tmp_path):
    config = quick("shapes", "textures")
    copied(config)
    evaluate.run(config, tmp_path)
    assert {folder.name for folder in tmp_path.iterdir()} == {"train", "eval-vqa", "report"}
