"""The frontier of a study whose runs have invented numbers."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from runs import add_train, add_vqa, predictions, publish, running_run

from vla_tune.artifacts.record import signed
from vla_tune.errors import UserError
from vla_tune.reports import frontier
from vla_tune.reports.runs import read_run
from vla_tune.stats.intervals import wilson
from vla_tune.vqa.scoring import Scored, summarise


def rolled(run, train, method, seed, outcomes):
    episodes = [{"task": f"touch-{n % 2}", "seed": 10_000 + n // 2, "success": good} for n, good in enumerate(outcomes)]
    files = {"report.json": {"success": {"value": 0.5, "low": 0.4, "high": 0.6}}, "episodes.parquet": episodes}
    publish(run, "eval-rollout", files, method, seed, [train.as_input()])


def one_run(out, label, seed, outcomes, kept=0.6):
    run = out / label / f"seed-{seed}"
    train = add_train(run, label, seed)
    add_vqa(run, train, label, seed, kept)
    rolled(run, train, label, seed, outcomes)
    return run


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    for seed in (0, 1):
        one_run(out, "full", seed, [True] * 4 + [False] * 2, kept=0.3)
        one_run(out, "frozen", seed, [False] * 6, kept=0.9)
    one_run(out, "aegis", 0, [True, False] * 3)
    (out / "benchmark").mkdir()
    (out / "benchmark" / "steps.json").write_text('{"aegis": {"step_s": 0.3, "step_ratio": 1.5}}')
    return out


@pytest.fixture(scope="module")
def rows(study):
    return {row["label"]: row for row in frontier.write_frontier(study, ["full", "frozen", "aegis", "lora"])}


def test_success_pools_all_seeds(rows):
    assert list(rows) == ["full", "frozen", "aegis"]  # lora has not begun
    assert rows["full"]["success"] == wilson(8, 12)
    assert rows["full"]["episodes"] == 12
    assert rows["full"]["seeds"] == {"vqa": [0, 1], "rollout": [0, 1]}


def test_comparisons_pair_seed_task_and_initial_state(rows):
    assert rows["full"]["against_full"] is None
    assert rows["aegis"]["against_full"] == {"pairs": 6, "difference": pytest.approx(-1 / 6), "lost": 2, "gained": 1, "p": 1.0}
    assert rows["full"]["against_frozen"] == {"pairs": 12, "difference": pytest.approx(8 / 12), "lost": 0, "gained": 8, "p": 2 / 2**8}


def test_retention_of_one_seed_is_the_stages_own():
    scored = predictions(0.6)
    base, tuned = (np.array([row[key] for row in scored]) for key in ("base_score", "score"))
    own = summarise(Scored([row["image_id"] for row in scored], ["all"] * len(scored), base, tuned), resamples=2000, seed=0)["retention"]
    assert frontier.retention([scored]) == pytest.approx(own)


def test_retention_over_seeds_is_their_mean_and_its_interval_covers_their_spread():
    low, high = predictions(0.3), predictions(0.9)
    alone = [frontier.retention([one]) for one in (low, high)]
    both = frontier.retention([low, high])
    assert both["value"] == pytest.approx((alone[0]["value"] + alone[1]["value"]) / 2)
    assert both["low"] < alone[0]["high"]
    assert both["high"] > alone[1]["low"]
    assert frontier.retention([]) is None


def test_minutes_count_what_a_run_was_made_from(tmp_path):
    full = add_train(tmp_path / "full" / "seed-0", "full")
    mixed = publish(tmp_path / "mixed" / "seed-0", "train", {"metrics.jsonl": []}, "wise_ft", 0, [full.as_input()])
    assert frontier.minutes(read_run(mixed.path.parent)) is None  # not recorded
    for artifact, seconds in ((full, 120), (mixed, 30)):
        file = artifact.path / "artifact.json"
        file.write_text(json.dumps(signed({**artifact.manifest, "metrics": {"seconds": seconds}})))
    assert frontier.minutes(read_run(mixed.path.parent)) == 2.5


def test_the_files(study, rows):
    assert json.loads((study / "frontier.json").read_text()) == list(rows.values())
    assert rows["aegis"]["step_ratio"] == 1.5
    text = (study / "frontier.md").read_text()
    assert "| `aegis` | 1 |" in text
    assert "-16.7 (-2 +1, p = 1)" in text
    assert "![frontier](frontier.svg)" in text
    drawn = ET.parse(study / "frontier.svg").getroot()  # noqa: S314 - our own file
    words = "".join(drawn.itertext())
    assert all(word in words for word in ("full", "frozen", "aegis", "VQA retention (%)", "closed-loop success (%)"))


def test_a_study_under_way(tmp_path, capsys):
    with pytest.raises(UserError, match="no run of a study lies there"):
        frontier.write_frontier(tmp_path)
    train = add_train(tmp_path / "full" / "seed-0", "full")
    add_vqa(tmp_path / "lora" / "seed-0", train, "lora")
    running_run(tmp_path / "aegis" / "seed-0")
    (full, lora) = frontier.write_frontier(tmp_path)
    assert [full[name] for name in ("retention", "success", "episodes", "minutes", "against_full")] == [None, None, 0, None, None]
    assert lora["retention"]
    assert not (tmp_path / "frontier.svg").exists()
    assert "frontier.svg" not in (tmp_path / "frontier.md").read_text()
    frontier.main([str(tmp_path)])
    assert "frontier:" in capsys.readouterr().out


def test_evaluations_of_a_training_replaced_since_are_left_out(tmp_path):
    run = one_run(tmp_path, "full", 0, [True] * 4)
    (run / "train").rename(tmp_path / "old")
    publish(run, "train", {"metrics.jsonl": []}, "full", 0)
    (row,) = frontier.write_frontier(tmp_path)
    assert row["retention"] is None
    assert row["success"] is None
