"""Ways to learn a stream side by side, on runs whose numbers can be worked out by hand."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from runs import publish, stream_config

from vla_tune.errors import UserError
from vla_tune.reports.streams import main, write_comparison

TASKS = ["red", "blue"]
GROWN = {"mean_trainable": 100.0, "final_added": 400, "task_router": 9}
GROWN |= {"trainable": [], "added": [], "final_parts": {}, "records": [], "mean_trainable_first": 100.0, "mean_trainable_last": 100.0}
NOTHING = {"value": None, "low": None, "high": None}


def make_run(folder, scores, *, worlds=None, tasks=TASKS, questions=1000, images=None):
    """scores: `(after, task) -> test samples' scores`; worlds: those of the other evaluation, which has the figures then."""
    settings = stream_config()
    settings["vqa"]["questions"] = questions
    train = publish(folder, "train", {"metrics.jsonl": []}, "igsp", 0, settings=settings)
    evaluations = {"eval-vqa": scores, **({"eval-rollout": worlds} if worlds else {})}
    for stage, own in evaluations.items():
        report = {"tasks": tasks, "parameters": GROWN}
        if (tasks[-1], tasks[-1]) in own:
            last = float(np.mean([np.mean(own[tasks[-1], task]) for task in tasks]))
            others = dict.fromkeys(("transfer", "average", "backward_transfer", "forgetting"), NOTHING)
            report["matrix"] = []
            report["figures"] = {"last": {**NOTHING, "value": last}, **others}
        rows = [
            {
                "after": after,
                "task": task,
                "sample": number,
                "image": str(number if images is None else images[number]),
                "score": float(value),
            }
            for (after, task), values in own.items()
            for number, value in enumerate(values)
        ]
        files = {"report.json": {"stream": report}, "cells.parquet": rows}
        publish(folder, stage, files, "igsp", 0, [train.as_input()], settings)


def scores(red_first, red_last, blue):
    return {("red", "red"): red_first, ("blue", "red"): red_last, ("blue", "blue"): blue}


def test_seeds_and_tasks_weigh_the_same_and_pairs_are_of_the_same_samples(tmp_path):
    make_run(tmp_path / "a" / "seed-0", scores([1, 1, 1, 0], [1, 1, 0, 0], [1, 0]))
    make_run(tmp_path / "a" / "seed-1", scores([1, 1, 1, 1], [1, 1, 1, 0], [1, 1]))
    make_run(tmp_path / "b" / "seed-1", scores([1, 1, 1, 1], [1, 1, 1, 1], [1, 0]))
    first, second = write_comparison(tmp_path, ["a", "b", "never run"])
    assert (first["label"], first["seeds"], second["seeds"]) == ("a", 2, 1)
    assert first["last"]["value"] == pytest.approx((0.5 + 0.5 + 0.75 + 1) / 4)
    assert first["first_task"]["value"] == pytest.approx(-0.25)
    assert second["first_task"]["value"] == 0
    assert second["first_task"]["low"] < 0 < second["first_task"]["high"]  # four samples that agree do not make it sure
    assert "difference" not in first
    assert second["difference"]["value"] == pytest.approx((0.25 - 0.5) / 2)  # from seed 1 of a
    assert second["difference"]["low"] <= -0.25 < 0 <= second["difference"]["high"]
    assert json.loads((tmp_path / "streams.json").read_text()) == [first, second]
    assert "| b | 1 | 75.0 % [37.5, 91.7] | -12.5 % [-50.0, 45.8] |" in (tmp_path / "streams.md").read_text()
    assert all(f">{name}<" in (tmp_path / "streams.svg").read_text() for name in "ab")
    main([str(tmp_path), "b"])  # the others follow by name, compared with it
    assert [(row["label"], "difference" in row) for row in json.loads((tmp_path / "streams.json").read_text())] == [
        ("b", False),
        ("a", True),
    ]


def test_a_robots_tasks_and_its_base_ability_come_from_two_evaluations(tmp_path):
    asked = {("", ""): [1, 1, 0, 1], ("blue", ""): [1, 0, 0, 1]}
    make_run(tmp_path / "a" / "seed-0", asked, worlds=scores([1, 0], [1, 1], [0, 1]))
    [row] = write_comparison(tmp_path, ["a"])
    assert (row["last"]["value"], row["first_task"]["value"], row["reference"]["value"]) == (0.75, 0.5, -0.25)
    assert (row["reference"]["low"], row["reference"]["high"]) == pytest.approx((-2 / 3, 1 / 3))


def test_an_interval_of_many_samples_is_the_bootstraps(tmp_path):
    rng = np.random.default_rng(0)
    before, after = rng.integers(0, 2, (2, 5000)).astype(float)
    make_run(tmp_path / "a" / "seed-0", scores(before, after, [1]))
    [row] = write_comparison(tmp_path, ["a"])
    changes = after - before
    half = 1.96 * changes.std() / len(changes) ** 0.5
    found = row["first_task"]
    assert found["value"] == pytest.approx(changes.mean())
    assert (found["low"], found["high"]) == pytest.approx((changes.mean() - half, changes.mean() + half), abs=0.002)


@pytest.mark.parametrize("success", [0, 1])
def test_an_interval_has_what_was_observed_in_it(tmp_path, monkeypatch, success):
    """Many tasks of which nothing, or everything, is left: the made-up samples of each draw the same way."""
    tasks = ["red", "green", "yellow", "pink", "blue"]
    found = {("red", "red"): [success] * 20, **{("blue", task): [success] * 20 for task in tasks}}
    make_run(tmp_path / "a" / "seed-0", found, tasks=tasks)
    [row] = write_comparison(tmp_path, ["a"])
    assert row["last"]["low"] <= row["last"]["value"] == success <= row["last"]["high"]
    assert row["last"]["low"] < row["last"]["high"]


def test_a_run_that_has_not_come_so_far_is_left_out(tmp_path):
    make_run(tmp_path / "a" / "seed-0", scores([1], [1], [1]))
    make_run(tmp_path / "a" / "seed-1", {("", ""): [1], ("blue", ""): [1]})
    [row] = write_comparison(tmp_path, ["a"])
    assert (row["seeds"], row["reference"]) == (1, None)


def test_what_does_not_count(tmp_path):
    """A failed run, a training that was not evaluated, and an evaluation of a training that was replaced since."""
    for label in ("a", "b"):
        make_run(tmp_path / label / "seed-0", scores([1], [1], [1]))
    other = {"metrics.jsonl": [{"step": 1}]}
    publish(tmp_path / "c" / "seed-0", "train", other, "igsp", 0, settings=stream_config())
    assert [row["label"] for row in write_comparison(tmp_path, ["a", "b", "c"])] == ["a", "b"]
    shutil.rmtree(tmp_path / "b" / "seed-0" / "train")
    publish(tmp_path / "b" / "seed-0", "train", other, "igsp", 0, settings=stream_config())
    [row] = write_comparison(tmp_path, ["a", "b"])
    assert row["label"] == "a"
    with pytest.raises(UserError, match="no run has been scored on its tasks"):
        write_comparison(tmp_path, ["a", "b"], without=[tmp_path / "a" / "seed-0"])


def test_what_was_scored_on_other_samples_is_left_out(tmp_path, capsys):
    make_run(tmp_path / "a" / "seed-0", scores([1], [1], [1]))
    make_run(tmp_path / "a" / "seed-1", scores([1, 0], [1, 0], [1]), questions=1001)
    make_run(tmp_path / "b" / "seed-0", scores([0, 0], [0, 0], [0]), questions=1001)
    [row] = write_comparison(tmp_path, ["a", "b"])
    assert (row["label"], row["seeds"]) == ("a", 1)
    assert "b, seed 0, is left out: it was scored with vqa.questions=1001 and not 1000" in capsys.readouterr().err


def test_samples_of_one_picture_are_drawn_together(tmp_path):
    """Each picture's questions are answered alike: there are as many independent samples as pictures."""
    marks = np.random.default_rng(0).integers(0, 2, 60).astype(float)
    for label, each in (("a", 1), ("b", 3)):
        make_run(tmp_path / label / "seed-0", scores([1], np.repeat(marks, each), [1]), images=np.repeat(np.arange(60), each))
    once, thrice = (row["last"] for row in write_comparison(tmp_path, ["a"]) + write_comparison(tmp_path, ["b"]))
    assert thrice["value"] == once["value"]
    assert thrice["high"] - thrice["low"] == pytest.approx(once["high"] - once["low"], rel=0.1)
