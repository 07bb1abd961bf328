from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from runs import MP4, PAYLOAD, add_train, add_vqa, predictions, publish, running_run, whole_run

from vla_tune.artifacts.folder import read_artifact
from vla_tune.errors import UserError
from vla_tune.reports import tables
from vla_tune.reports.provenance import command
from vla_tune.reports.runs import read_run, read_runs
from vla_tune.stages import report

SECTIONS = ("headline", "outcome", "types", "drift", "curves", "answers", "rollouts", "provenance")


@pytest.fixture(autouse=True, scope="module")
def _pictures() -> Iterator[None]:
    """The questions' pictures, without making the real set."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    features = Features({"image_id": Value("string"), "question": Value("string"), "image": ImageFeature()})
    asked = [(row["image_id"], row["question"]) for row in predictions(1.0)]
    rows = {"image_id": [one for one, _ in asked], "question": [one for _, one in asked]}
    rows["image"] = [Image.new("RGB", (64, 64), (n, 0, 0)) for n in range(len(asked))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vla_tune.vqa.dataset.vqa_questions", lambda *_: Dataset.from_dict(rows, features=features))
        yield


class Page(HTMLParser):
    """What a page holds: its section ids, its text, and the addresses that it loads or links to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.source = file.read_text()
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        if "id" in values:
            self.ids.append(values["id"])
        self.addresses += [values[name] for name in ("src", "href", "xlink:href", "srcset", "poster", "data") if values.get(name)]

    def handle_data(self, data):
        self.text += data


def make(runs, out: Path) -> tuple[Page, list[dict]]:
    report.run(runs, out)
    return Page(out / "report.html"), json.loads((out / "report.json").read_text())["runs"]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    root = tmp_path_factory.mktemp("two")
    return [whole_run(root / "full", "full", kept=0.4), whole_run(root / "aegis")]


@pytest.fixture(scope="module")
def side_by_side(two, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "report"
    page, numbers = make(two, out)
    return SimpleNamespace(page=page, numbers=numbers, out=out)


def test_the_page_is_whole_and_needs_nothing_else(side_by_side):
    page = side_by_side.page
    assert all(section in page.ids for section in SECTIONS)
    assert not re.search(r"https?:|//\w|@import", re.sub(r'data:[^"]*', "", page.source))
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert len(page.ids) == len(set(page.ids))
    for wanted in ("full, seed 0", "aegis, seed 0", "W2² / width", "energy shed (%)", "learning rate", "count_attribute", "blind guesser"):
        assert wanted in page.text


def test_text_from_data_is_escaped(side_by_side):
    page = side_by_side.page
    assert "<script>" not in page.source
    assert PAYLOAD in page.text


def test_pictures_and_videos_lie_in_the_page(side_by_side):
    page = side_by_side.page
    assert "data:video/mp4;base64," + base64.b64encode(MP4).decode() in page.addresses
    assert sum(address.startswith("data:image/png") for address in page.addresses) > 10


def test_axes_take_the_colour_of_the_page(side_by_side):
    page = side_by_side.page
    assert "currentColor" in page.source
    assert "#010203" not in page.source
    assert "prefers-color-scheme: dark" in page.source


def test_numbers_are_those_of_the_stages(two, side_by_side):
    page, numbers = side_by_side.page, side_by_side.numbers
    for run, found in zip(two, numbers, strict=True):
        vqa = json.loads((run / "eval-vqa" / "report.json").read_text())
        headline = found["headline"]
        assert headline["vqa_before"] == vqa["base_accuracy"]
        assert headline["vqa_after"] == vqa["accuracy"]
        assert headline["retention"] == vqa["retention"]
        assert headline["drift"] == vqa["drift"]
        assert headline["success"] == {"value": 0.75, "low": 0.5, "high": 0.9}
        assert headline["episodes"] == 16
        assert headline["steps"] == 400
        assert found["by_type"]["shape"]["blind"] == 0.3
        assert found["by_task"]["reach-v3"]["low"] == 0.41
        rows = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
        assert found["curves"]["loss"] == [row["loss"] for row in rows]
        assert f"{100 * vqa['accuracy']['value']:.1f} %" in page.text
    full, aegis = numbers
    assert full["headline"]["energy_shed"] is None
    assert full["diagnostics"] is None
    shed = [value for row in rows for value in row["energy_shed"] if value is not None]
    assert aegis["headline"]["energy_shed"] == pytest.approx(sum(shed) / len(shed))
    assert aegis["diagnostics"]["energy_shed"][3] == [None] * 40
    assert aegis["layers"][3] == {"layer": 3, "cosine": None, "projected": None, "energy_shed": None, "final_drift": 0.004}


def test_the_language_probe_is_shown(side_by_side):
    assert side_by_side.numbers[0]["language_probe"]["swapped"]["value"] == 0.625
    text = side_by_side.page.text
    assert all(wanted in text for wanted in ("Language probe", "another task's", "62.5 %"))
    assert "followed" not in text.replace("What is followed is", "")


def test_answers_by_likelihood_are_shown(side_by_side):
    line = "By likelihood of candidate answers (30 questions): 90.0 % before, 80.0 % after; at best 100.0 %"
    assert line in side_by_side.page.text


def test_changed_answers_are_counted(two, side_by_side):
    rows = read_run(two[1]).predictions
    assert side_by_side.numbers[1]["changed_answers"] == {
        "total": 60,
        "changed": sum(row["prediction"] != row["base_prediction"] for row in rows),
        "lost": sum(row["score"] < row["base_score"] for row in rows),
        "gained": sum(row["score"] > row["base_score"] for row in rows),
    }


def test_the_report_is_an_artifact_of_its_runs(two, side_by_side):
    artifact = read_artifact(side_by_side.out, "report", "")
    assert set(artifact.manifest["files"]) == {"report.html", "report.json"}
    assert len(artifact.manifest["inputs"]) == 8
    assert [row["run"] for row in artifact.metrics["runs"]] == [str(run) for run in two]


def test_an_existing_report_is_replaced_only_when_told(tmp_path):
    out, run = tmp_path / "report", running_run(tmp_path / "run", "full")
    make([run], out)
    with pytest.raises(UserError, match="--overwrite"):
        report.run([run], out)
    (run / "train.partial" / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    report.run([run], out, overwrite=True)
    assert json.loads((out / "report.json").read_text())["runs"][0]["headline"]["steps"] == 1


def test_a_run_that_is_going(tmp_path):
    page, [numbers] = make([running_run(tmp_path / "run")], tmp_path / "report")
    assert numbers["headline"]["running"] is True
    assert numbers["headline"]["method"] == "aegis"
    assert numbers["headline"]["steps"] == 400
    assert numbers["headline"]["vqa_after"] is None
    assert all(section in page.ids for section in SECTIONS if section != "outcome")
    assert "still training" in page.text


def test_a_run_that_has_logged_nothing_yet(tmp_path):
    run = running_run(tmp_path / "run")
    (run / "train.partial" / "metrics.jsonl").write_text("")
    _, [numbers] = make([run], tmp_path / "report")
    assert numbers["headline"]["steps"] is None


@pytest.mark.parametrize("stage", ["anchor", "train", "eval-vqa"])
def test_whatever_exists_is_shown(tmp_path, stage):
    run = tmp_path / "run"
    if stage == "anchor":
        publish(run, "anchor", {"anchor.safetensors": b"statistics"}, "full", 0)
    else:
        train = add_train(run, "full")
        if stage == "eval-vqa":
            add_vqa(run, train, "full")
    page, [numbers] = make([run], tmp_path / "report")
    assert stage in numbers["stages"]
    assert "No rollouts yet" in page.text


def test_nothing_to_report_on_names_the_commands(tmp_path):
    with pytest.raises(UserError, match="vla-tune train PIPELINE"):
        report.run([tmp_path / "nowhere"], tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_a_damaged_artifact_is_named(tmp_path):
    run = whole_run(tmp_path / "run")
    (run / "eval-vqa" / "report.json").write_text("{}")
    with pytest.raises(UserError, match=r"eval-vqa/report\.json"):
        report.run([run], tmp_path / "report")


def test_not_a_number_becomes_null_and_is_drawn_as_a_gap(tmp_path):
    run = running_run(tmp_path / "run", "full")
    log = run / "train.partial" / "metrics.jsonl"
    log.write_text('{"step": 10, "loss": 1.0, "lr": 0.1, "grad_norm": 1.0}\n{"step": 20, "loss": NaN, "lr": 0.1, "grad_norm": Infinity}\n')
    report.run([run], tmp_path / "report")
    text = (tmp_path / "report" / "report.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["runs"][0]["curves"]["loss"] == [1.0, None]


def test_a_method_that_measures_some_diagnostics_only(tmp_path):
    add_train(tmp_path / "run", "subspace")
    artifact = report.run([tmp_path / "run"], tmp_path / "out")
    layers = json.loads((artifact.path / "report.json").read_text())["runs"][0]["layers"]
    assert 0.8 < layers[0]["energy_shed"] < 0.9
    assert layers[0]["cosine"] is None
    page = (artifact.path / "report.html").read_text()
    assert "Energy shed" in page
    assert "Gradient cosine" not in page


def test_an_evaluation_of_a_replaced_training_is_pointed_out(tmp_path):
    run = tmp_path / "run"
    add_vqa(run, add_train(run))
    assert read_run(run).outdated == []
    for stage in ("anchor", "train"):
        (run / stage).rename(tmp_path / stage)
    add_train(run, "full")
    assert read_run(run).outdated == ["eval-vqa"]


def test_runs_are_told_apart(tmp_path):
    runs = [whole_run(tmp_path / name, method, seed) for name, method, seed in (("a", "full", 0), ("b", "full", 0), ("c", "full", 1))]
    labels = [run.label for run in read_runs(runs)]
    assert labels == [f"full, seed 0 ({runs[0]})", f"full, seed 0 ({runs[1]})", "full, seed 1"]
    page, numbers = make([*runs, runs[0], *(whole_run(tmp_path / f"more-{n}", "lora", n) for n in range(3))], tmp_path / "report")
    assert len(numbers) == 6
    assert len(page.ids) == len(set(page.ids))


def test_the_command_makes_the_same_configuration_again(tmp_path):
    run = read_run(whole_run(tmp_path / "run", "aegis", 3))
    line = command("train", run.config, run)
    assert line == f"vla-tune train demo seed=3 method.name=aegis vqa.questions=60 --out {run.path}"
    elsewhere = {**run.config, "name": "mine", "rollout": {**run.config["rollout"], "tasks": ["a b"]}}
    assert "mine.yaml" in command("train", elsewhere, run)
    assert """'rollout.tasks=["a b"]'""" in command("train", elsewhere, run)


def test_rates_show_their_interval():
    assert tables.rate({"value": 0.5, "low": 0.25, "high": 0.75}, "8 episodes") == tables.Cell("50.0 %", "25.0 to 75.0, 8 episodes")
    assert tables.rate(None).text == tables.NONE
    assert tables.rate({"value": 1.0, "low": None, "high": None}).note == ""
