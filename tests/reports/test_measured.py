"""What was measured in the middle of a training, in the report."""

from __future__ import annotations

import json

from runs import config

from vla_tune.artifacts.folder import write_json
from vla_tune.reports.page import numbers, page
from vla_tune.reports.runs import read_runs


def running(folder, rows):
    """A training that is under way, with these rows."""
    partial = folder / "train.partial"
    partial.mkdir(parents=True)
    write_json(partial / "run.json", config("full", 0))
    (partial / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_runs([folder])


def test_measurements_are_drawn_beside_the_training_loss(tmp_path):
    rows = [{"step": step, "loss": 1 / step, "lr": 0.1, "grad_norm": 1.0, "step_s": 0.1, "data_s": 0.0} for step in range(1, 7)]
    plain = running(tmp_path / "plain", rows)
    for row in rows[1::2]:
        row |= {"heldout_loss": 2 / row["step"], "vqa_accuracy": 0.5, "drift_vqa": 0.1}
    measured = running(tmp_path / "measured", rows)
    told = ("points: held out", "VQA accuracy in training", "Drift from the anchor")
    pages = [page(runs, "now", "1") for runs in (plain, measured)]
    assert not any(words in pages[0] for words in told)
    assert all(words in pages[1] for words in told)
    curves = numbers(measured)["runs"][0]["curves"]
    assert curves["heldout_loss"] == [None, 1.0, None, 0.5, None, 2 / 6]
    assert curves["vqa_accuracy"] == [None, 0.5] * 3
    assert numbers(plain)["runs"][0]["curves"]["heldout_loss"] == [None] * 6
