from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from runs import STREAM, running_run, running_stream, stream_report, stream_run, whole_run

from vla_tune.reports import plots, tables
from vla_tune.reports.runs import Run, read_run
from vla_tune.stages import report


def make(runs: list[Path], out: Path) -> tuple[str, list[dict]]:
    report.run(runs, out)
    return (out / "report.html").read_text(), json.loads((out / "report.json").read_text())["runs"]


def texts(table: tables.Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return stream_run(tmp_path_factory.mktemp("pictures") / "run")


@pytest.fixture(scope="module")
def robot(tmp_path_factory):
    return stream_run(tmp_path_factory.mktemp("robot") / "run", robot=True)


def test_a_stream_is_read_from_its_evaluations(pictures, robot):
    assert read_run(pictures).stream == stream_report()
    found = read_run(robot)
    assert found.stream == {**stream_report(reference=False, start=False), "reference": stream_report()["reference"]}
    assert (found.vqa, found.rollout, found.predictions, found.episodes) == (None, None, [], [])
    assert found.of_stream


@pytest.mark.parametrize("stages", [("eval-vqa",), ("eval-rollout",), ()])
def test_a_robots_stream_that_is_evaluated_in_part(tmp_path, stages):
    run = stream_run(tmp_path / "run", robot=True, stages=stages)
    page, [numbers] = make([run], tmp_path / "report")
    missing = [stage for stage in ("eval-vqa", "eval-rollout") if stage not in stages]
    assert f"Not made yet: {', '.join(missing)}." in page
    assert (numbers["stream"] is None) == (not stages)
    assert (numbers["headline"]["vqa_after"] is None) == ("eval-vqa" not in stages)
    assert ('id="stream"' in page) == bool(stages)
    assert ("after drawer" in page) == ("eval-rollout" in stages)


def test_the_page_has_a_section_for_streams(pictures, tmp_path):
    page, [numbers] = make([pictures], tmp_path / "report")
    assert numbers["stream"] == stream_report()
    for wanted in ("What phase 1 found", "What samples were taken for", "Task given", "mean routing probability", "router agreement (%)"):
        assert wanted in page
    assert not any(f'id="{section}"' in page for section in ("types", "drift", "answers", "rollouts"))
    assert "Not made yet" not in page
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_a_robots_stream_shows_its_videos(robot, tmp_path):
    page, _ = make([robot], tmp_path / "report")
    assert page.count("data:video/mp4;base64,") == 1
    assert "Episodes after the last task" in page


def test_streams_stand_beside_other_runs(pictures, robot, tmp_path, monkeypatch):
    monkeypatch.setattr("vla_tune.reports.media._pictures", lambda *_: {})
    page, numbers = make([whole_run(tmp_path / "plain"), pictures, robot], tmp_path / "report")
    assert [one["stream"] is None for one in numbers] == [True, False, False]
    assert all(f'id="{section}"' in page for section in ("stream", "types", "drift", "answers", "rollouts"))
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_a_run_without_a_stream_has_no_such_section(tmp_path):
    page, [numbers] = make([running_run(tmp_path / "run", "full")], tmp_path / "report")
    assert numbers["stream"] is None
    assert 'id="stream"' not in page
    assert "Of a stream" not in page


def test_a_stream_that_is_going(tmp_path):
    page, [numbers] = make([running_stream(tmp_path / "run")], tmp_path / "report")
    assert numbers["headline"]["steps"] == 400
    assert numbers["headline"]["method"] == "igsp"
    assert numbers["stream"] is None
    assert "still training" in page
    assert "No VQA evaluation" not in page
    assert "Not made yet: train, eval-vqa." in page


def test_the_headline_has_the_base_ability(robot):
    figures = tables.headline(read_run(robot))
    kept = stream_report()["reference"]
    assert [figures[name] for name in ("vqa_before", "vqa_after", "retention")] == [kept[name] for name in ("before", "after", "retention")]
    assert figures["questions"] == 160
    assert figures["steps"] == 400
    assert (figures["success"], figures["episodes"], figures["drift"]) == (None, None, None)


def test_the_opening_table_has_the_columns_that_its_runs_fill(pictures, tmp_path):
    stream, plain = read_run(pictures), read_run(running_run(tmp_path / "run", "full"))
    of_stream, of_others = list(tables.OF_STREAMS), list(tables.OF_OTHERS)
    common = ["Run", "Steps", "VQA before", "VQA after", "Retention", "Step time"]
    assert sorted(tables.headline_table([stream]).header) == sorted(common + of_stream)
    assert sorted(tables.headline_table([plain]).header) == sorted(common + of_others)
    both = tables.headline_table([stream, plain])
    assert sorted(both.header) == sorted(common + of_stream + of_others)
    [shown, without] = [row[both.header.index("Last")].text for row in both.rows]
    assert (shown, without) == (tables.percent(stream_report()["figures"]["last"]["value"]), tables.NONE)


def test_the_matrix_has_dashes_where_nothing_was_measured(pictures, robot):
    table = tables.matrix_table(read_run(pictures))
    assert table.header == ["Score on", *STREAM]
    assert texts(table)[:2] == [["before the stream", *["6.2 %"] * 3], ["after reach", "87.5 %", "12.5 %", "12.5 %"]]
    assert texts(tables.matrix_table(read_run(robot))) == [
        ["after reach", "87.5 %", tables.NONE, tables.NONE],
        ["after drawer", "87.5 %", "87.5 %", tables.NONE],
        ["after button", *["87.5 %"] * 3],
    ]


def test_figures_have_intervals_and_other_ways_of_telling_tasks(pictures, robot):
    table = tables.stream_table(read_run(pictures))
    assert table.header == ["Figure", "One decision a sample", "One decision a batch", "Task given"]
    assert table.rows[0][1] == tables.Cell("87.5 %", "84.5 to 90.5")
    assert texts(table) == [
        ["Last", "87.5 %", "90.0 %", "91.2 %"],
        ["Average", "50.0 %", "", ""],
        ["Transfer", "12.5 %", "", ""],
        ["Backward transfer", "-6.2 %", "", ""],
        ["Forgetting", "6.2 %", "", ""],
    ]
    assert texts(tables.stream_table(read_run(robot)))[1][1] == tables.NONE


def test_parameters_samples_and_phase_1_by_task(pictures):
    run = read_run(pictures)
    assert texts(tables.base_table(run)) == [["base ability", "160", "98.0 %", "95.0 %", "96.9 %"]]
    assert texts(tables.parameters_table(run)) == [
        ["reach", "2,000", "1,000", "1,234", "1,000"],
        ["drawer", "2,000", "1,000", "1,234", "2,000"],
        ["button", "2,000", "1,000", "1,234", "3,000"],
        ["mean over tasks", "2,000", "1,000", "1,234", ""],
    ]
    assert tables.parts_line(run) == "Added in all: experts 2,700, routers 300; 64 numbers tell samples apart by task."
    taken = tables.taken_table(run)
    assert taken.header == ["Samples of", *STREAM, "none"]
    assert texts(taken)[1] == ["drawer", "1.0 %", "96.0 %", "1.0 %", "2.0 %"]
    assert texts(tables.phase_table(run)) == [
        ["reach", "30", "5 of 10", "0"],
        ["drawer", "30", "4 of 10", "4"],
        ["button", "30", "4 of 10", "8"],
    ]


def test_a_strategy_that_neither_routes_nor_records(pictures):
    found = read_run(pictures)
    plain = {key: value for key, value in stream_report().items() if key not in ("taken_for", "last_by_batch", "last_by_given", "figures")}
    for one in plain["parameters"]["records"]:
        for name in ("agreement", "ended", "new", "old", "candidates", "shares"):
            del one[name]
    run = Run(found.path, found.artifacts, found.config, stream=plain, label="full")
    assert plots.matrix_map(run)
    assert (plots.router_map(run), plots.agreement(run)) == (None, None)
    assert not any(table(run).rows for table in (tables.stream_table, tables.taken_table, tables.phase_table))


def test_pictures_of_a_stream(pictures):
    run = read_run(pictures)
    matrix, router, agreement = plots.matrix_map(run), plots.router_map(run), plots.agreement(run)
    assert all(name in svg for svg in (matrix, router, agreement) for name in STREAM)
    assert all(name in matrix for name in (">88<", ">12<", "(before)"))
    assert all(name in router for name in ("vision 0 fc1", "vision 1 q", ">state<", "base", "3 button"))
    assert router.count("<image") == 4  # a panel a task, and the scale


@pytest.mark.parametrize(("tasks", "layers", "own"), [(1, 1, 1), (11, 60, 3)])
def test_the_map_of_routers_takes_any_size(pictures, tasks, layers, own):
    found = read_run(pictures)
    experts = [f"{task}-{number}" for task in range(tasks) for number in range(own)]
    shares = {f"vision_model.layers.{number}.mlp.fc1": dict.fromkeys(["base", *experts], 0.1) for number in range(layers)}
    records = [{"name": f"task {task}", "shares": shares} for task in range(tasks)]
    svg = plots.router_map(Run(found.path, {}, found.config, stream={"parameters": {"records": records}}, label="wide"))
    assert svg.count("<image") == tasks + 1


def test_layers_stand_in_order_under_short_names():
    layers = ["a.text_model.layers.10.mlp.fc1", "a.text_model.layers.2.mlp.fc1", "a.text_model.layers.2.self_attn.out_proj"]
    layers += [
        "a.text_model.layers.2.self_attn.k_proj",
        "a.lm_expert.layers.0.odd",
        "a.state_proj",
        "a.text_model.layers.2.self_attn.q_proj",
    ]
    order = plots.layer_order(layers)
    assert plots.short_names(order) == ["text 2 q", "text 2 k", "text 2 out", "text 2 fc1", "text 10 fc1", "expert 0 odd", "state"]
    same = ["a.layers.0.self_attn.q_proj", "a.layers.0.cross_attn.q_proj"]
    assert plots.short_names(same) == same
