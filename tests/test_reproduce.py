from __future__ import annotations

import itertools
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vla_tune import reproduce
from vla_tune.artifacts.folder import Draft, read_artifact, write_json
from vla_tune.errors import RunError
from vla_tune.studies import Study, make_plan, narrowed

RATE = {"value": 0.5, "low": 0.4, "high": 0.6}
ASKED = {"type": "colour", "question": "what colour?", "answers": ["red"], "base_prediction": "red", "prediction": "red", "base_score": 1.0}
ANSWERS = [{**ASKED, "image_id": "a", "score": 1.0}, {**ASKED, "image_id": "b", "prediction": "blue", "score": 0.0}]
EPISODES = [{"task": "touch-red", "seed": seed, "success": seed % 2 == 0} for seed in range(8)]
FILES = {
    "anchor": {"anchor.json": {}},
    "train": {"metrics.jsonl": {"step": 10, "energy_shed": [0.25, None, 0.75]}},
    "eval-vqa": {"report.json": {"base_accuracy": RATE, "accuracy": RATE, "retention": RATE, "drift": 0.1}, "predictions.parquet": ANSWERS},
    "eval-rollout": {"report.json": {"success": RATE, "episodes": 8}, "episodes.parquet": EPISODES},
}
INPUTS = {"anchor": [], "train": ["anchor"], "eval-vqa": ["train", "anchor"], "eval-rollout": ["train"]}


@pytest.fixture
def made(monkeypatch) -> list[str]:
    """What was run, in order; the stages write artifacts that depend on configuration and time."""
    calls: list[str] = []
    number = itertools.count()

    def stage(name):
        def run(config, folder, *, overwrite=False, resume=False):
            calls.append(f"{folder.parent.name}/{config.seed}/{name}{' resumed' if resume else ''}")
            with Draft(folder / name, name, overwrite=overwrite or resume, keep=("checkpoints",) if resume else ()) as draft:
                for file, content in FILES[name].items():
                    if file.endswith("jsonl"):
                        (draft.path / file).write_text(json.dumps({**content, "call": next(number)}) + "\n")
                    elif file.endswith("parquet"):
                        pq.write_table(pa.Table.from_pylist(content), draft.path / file)
                    else:
                        write_json(draft.path / file, {**content, "call": next(number)})
                inputs = [read_artifact(folder / one, one, "").as_input() for one in INPUTS[name]]
                if name == "train" and config.method.name == "wise_ft":
                    inputs.append(read_artifact(Path(config.method.wise_ft.path), "train", "").as_input())
                return draft.publish(config=config.to_dict(), inputs=inputs, metrics={"seconds": 60.0})

        def joint(folders, out, *, overwrite):
            calls.append(f"report of {len(folders)}")

        return joint if name == "report" else run

    def times(config, methods):
        calls.append(f"benchmark {','.join(methods)}")
        trained = [label for label, (method, _) in methods.items() if method.name != "wise_ft"]
        return {label: (0.1, 1.0 + number) for number, label in enumerate(trained)}

    monkeypatch.setattr(reproduce, "stage_function", stage)
    monkeypatch.setattr(reproduce, "step_times", times)
    return calls


@pytest.fixture
def go(tmp_path, made):
    def start(*overrides: str, methods: str = "full,aegis", seeds: int = 1):
        made.clear()
        out = tmp_path / "out"
        rows = reproduce.reproduce(make_plan(narrowed(Study("reproduce", seeds=seeds), methods), out, list(overrides)))
        return SimpleNamespace(rows=rows, made=list(made), out=out)

    return start


LATER = ["train", "eval-vqa", "eval-rollout"]


def all_of(*runs: str) -> list[str]:
    return [f"{run}/{stage}" for run in runs for stage in LATER]


def test_everything_is_made_once_and_the_anchor_is_shared(go):
    first = go()
    assert first.made == ["full/0/anchor", *all_of("full/0", "aegis/0"), "benchmark full,aegis", "report of 2"]
    assert (
        read_artifact(first.out / "aegis/seed-0/anchor", "anchor", "").digest
        == read_artifact(first.out / "full/seed-0/anchor", "anchor", "").digest
    )
    assert not list(first.out.rglob("*.partial"))


def test_a_run_that_fails_is_left_out_and_told(go, monkeypatch, capsys, tmp_path):
    stages = reproduce.stage_function

    names = "full,aegis,wise_ft"  # wise_ft reads the run of full
    go(methods=names)  # what an earlier time left does not count either

    def sick(name):
        def run(config, folder, **how):
            if name == "train" and config.method.name == "full" and config.seed == 0:
                raise RunError("the loss is no number")
            return stages(name)(config, folder, **how)

        return stages(name) if name == "report" else run

    monkeypatch.setattr(reproduce, "stage_function", sick)
    with pytest.raises(RunError, match="2 runs failed and are not in the table: full seed 0, wise_ft seed 0"):
        go("train.steps=7", methods=names, seeds=2)
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [(row["method"], row["seed"]) for row in table] == [("aegis", 0), ("full", 1), ("aegis", 1), ("wise_ft", 1)]
    frontier = json.loads((tmp_path / "out" / "frontier.json").read_text())
    assert {row["label"]: row["seeds"]["vqa"] for row in frontier} == {"full": [1], "aegis": [0, 1], "wise_ft": [1]}
    assert "full, seed 0, failed" in capsys.readouterr().err


def test_the_table(go):
    result = go()
    assert json.loads((result.out / "table.json").read_text()) == result.rows
    assert result.rows[1] == {
        "method": "aegis",
        "seed": 0,
        "default": False,
        "vqa_before": 0.5,
        "vqa_after": 0.5,
        "retention": 0.5,
        "success": 0.5,
        "episodes": 8,
        "drift": 0.1,
        "energy_shed": 0.5,
        "step_s": 0.1,
        "step_ratio": 2.0,
    }
    assert not result.rows[0]["default"]  # the pipeline's own method is another


def test_a_second_time_keeps_everything_and_says_so(go, capsys):
    go()
    capsys.readouterr()
    again = go()
    assert again.made == ["report of 2"]
    out = capsys.readouterr().out
    assert out.count("kept, its configuration and inputs are unchanged") == 8
    assert "step times kept" in out
    assert "minutes in all" in out


def test_what_an_earlier_version_recorded_less_of_is_kept(go):
    out = go().out
    file = out / "full" / "seed-0" / "sources.json"
    recorded = json.loads(file.read_text())
    del recorded["train"]["vqa.manifest"]
    write_json(file, recorded)
    assert go().made == ["report of 2"]


@pytest.mark.parametrize(
    ("override", "remade"),
    [
        ("train.lr=0.0005", [*all_of("full/0", "aegis/0"), "benchmark full,aegis"]),
        ("rollout.episodes=30", ["full/0/eval-rollout", "aegis/0/eval-rollout"]),
        ("vqa.questions=300", ["full/0/eval-vqa", "aegis/0/eval-vqa"]),
        ("anchor.samples=300", ["full/0/anchor", *all_of("full/0", "aegis/0"), "benchmark full,aegis"]),
    ],
)
def test_a_changed_key_remakes_what_reads_it_and_what_follows(go, override, remade):
    go()
    assert go(override).made == [*remade, "report of 2"]


def test_another_base_vlm_under_the_same_name_remakes_what_depends_on_it(go, tmp_path, capsys):
    vlm = tmp_path / "vlm"
    vlm.mkdir()
    (vlm / "model.safetensors").write_bytes(b"before")
    setting = f"policy.base_vlm={vlm}"
    go(setting)
    assert go(setting).made == ["report of 2"]
    (vlm / "model.safetensors").write_bytes(b"after")
    capsys.readouterr()
    assert go(setting).made == ["full/0/anchor", *all_of("full/0", "aegis/0"), "benchmark full,aegis", "report of 2"]
    assert "anchor (made again: the files that policy.base_vlm names changed)" in capsys.readouterr().out


def test_a_new_method_or_seed_keeps_the_others(go):
    go()
    more = go(methods="full,aegis,lora", seeds=2)
    assert more.made == [
        *all_of("lora/0", "full/1", "aegis/1", "lora/1"),
        "benchmark full,aegis,lora",
        "report of 6",
    ]
    assert (more.out / "lora" / "seed-1" / "anchor" / "artifact.json").is_file()


def test_a_damaged_stage_is_made_again_with_what_follows(go, capsys):
    result = go()
    (result.out / "full/seed-0/train/metrics.jsonl").write_text("cut")
    assert go().made == [*all_of("full/0"), "report of 2"]
    assert "train (made again" in capsys.readouterr().out


def interrupted(folder: Path, config: dict) -> None:
    shutil.rmtree(folder / "train")
    partial = folder / "train.partial"
    (partial / "checkpoints" / "200").mkdir(parents=True)
    write_json(partial / "run.json", config)


def test_an_interrupted_training_is_resumed(go):
    result = go()
    folder = result.out / "full" / "seed-0"
    interrupted(folder, read_artifact(folder / "train", "train", "").config)
    assert go().made[0] == "full/0/train resumed"


def test_another_configuration_or_a_newer_anchor_is_not_resumed(go):
    result = go()
    folder = result.out / "full" / "seed-0"
    config = read_artifact(folder / "train", "train", "").config
    interrupted(folder, config)
    assert go("train.lr=0.5").made[0] == "full/0/train"
    interrupted(folder, {**config, "train": {**config["train"], "lr": 0.5}})
    os.utime(folder / "train.partial" / "run.json", (0, 0))
    assert go("train.lr=0.5").made[0] == "full/0/train"


def test_an_option_of_another_method_makes_nothing_stale(go):
    go(methods="full")
    assert go("method.lora.rank=4", methods="full").made == ["report of 1"]


WISE = Study(
    "wise",
    seeds=2,
    overrides=["vqa.questions=300"],
    variants={
        "half": ["method.name=wise_ft", "method.wise_ft.path={plain}/train"],
        "plain": [],
        "slow": ["method.name=full", "method.full.vlm_lr=0.1"],
    },
)


def test_variants_are_made_after_those_they_are_made_from(tmp_path, made):
    rows = reproduce.reproduce(make_plan(WISE, tmp_path))
    first = ["plain/0/anchor", *all_of("plain/0", "half/0", "slow/0")]
    assert made == [*first, *all_of("plain/1", "half/1", "slow/1"), "benchmark plain,half,slow", "report of 6"]
    assert [(row["method"], row["default"], row["step_ratio"]) for row in rows[:3]] == [
        ("plain", True, 1.0),
        ("half", False, None),
        ("slow", False, 2.0),
    ]
    config = read_artifact(tmp_path / "half" / "seed-1" / "train", "train", "").config
    assert config["method"]["wise_ft"]["path"] == str(tmp_path / "plain" / "seed-1" / "train")
    frontier = {row["label"]: row for row in json.loads((tmp_path / "frontier.json").read_text())}
    assert frontier["half"]["minutes"] == 2.0  # its own and that of the run it is made from
    made.clear()
    reproduce.reproduce(make_plan(WISE, tmp_path))
    assert made == ["report of 6"]


def test_a_training_made_from_another_runs_is_made_again_with_it(tmp_path, made):
    study = replace(WISE, seeds=1)
    reproduce.reproduce(make_plan(study, tmp_path))
    made.clear()
    changed = replace(study, variants={**study.variants, "plain": ["method.name=full", "method.full.vlm_lr=0.5"]})
    reproduce.reproduce(make_plan(changed, tmp_path))
    assert made == [*all_of("plain/0", "half/0"), "benchmark plain,half,slow", "report of 3"]


def test_a_study_makes_no_more_than_it_says(tmp_path, made):
    rows = reproduce.reproduce(make_plan(Study("short", variants={"full": []}, stages=["train", "eval-vqa"]), tmp_path))
    assert made == ["full/0/anchor", "full/0/train", "full/0/eval-vqa", "report of 1"]
    assert rows[0]["retention"] == 0.5
    assert [rows[0][name] for name in ("success", "episodes", "step_s", "step_ratio")] == [None] * 4


def test_the_command_line_ends_with_the_contract_codes(go, tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["--methods", "none", "--out", str(tmp_path / "other")])
    assert ended.value.code == 2
    assert "there is no method or variant 'none'" in capsys.readouterr().err
    monkeypatch.setattr(reproduce, "stage_function", lambda _: interrupt)
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["train.steps=5", "--methods", "full", "--out", str(tmp_path / "other")])
    assert ended.value.code == 130


def interrupt(*_args, **_options):
    raise KeyboardInterrupt
