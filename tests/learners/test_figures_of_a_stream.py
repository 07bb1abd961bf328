"""What is drawn from scores after tasks, on scores that can be worked out by hand."""

from __future__ import annotations

import pytest
import torch

from vla_tune.evaluation.matrix import TaskScores, figures
from vla_tune.vqa.scoring import Scored, summarise


def cell(after, task, scores, about=None):
    return TaskScores(after, task, torch.tensor(scores, dtype=torch.float64), None, about)


def test_samples_that_all_agree_do_not_make_it_sure():
    cells = [cell(0, 0, [1] * 20), cell(1, 0, [1] * 20), cell(1, 1, [1] * 20)]
    told = figures({"sample": cells, "start": []}, ["a", "b"], 500, 0)["figures"]
    assert (told["last"]["value"], told["last"]["high"], told["backward_transfer"]["value"]) == (1, 1, 0)
    assert 0.7 < told["last"]["low"] < 1
    assert -0.2 < told["backward_transfer"]["low"] < 0 < told["backward_transfer"]["high"] < 0.2
    assert told["transfer"] == {"value": None, "low": None, "high": None}


def test_what_belongs_to_no_task_is_told_as_without_a_stream():
    before, after, about = [1, 1, 0, 1, 0, 1], [1, 0, 0, 1, 1, 1], ["x", "x", "x", "y", "y", "z"]
    told = figures({"reference": [cell(-1, -1, before, about), cell(1, -1, after, about)], "sample": []}, ["a", "b"], 300, 0)
    scored = Scored(about, [""] * 6, *(torch.tensor(one, dtype=torch.float64).numpy() for one in (before, after)))
    own = summarise(scored, resamples=300, seed=0)
    assert told["reference"] == {"before": own["base_accuracy"], "after": own["accuracy"], "retention": own["retention"], "n": 6}


def test_nothing_is_retained_where_nothing_was_right():
    told = figures({"reference": [cell(-1, -1, [0] * 4), cell(0, -1, [0, 1, 0, 0])], "sample": []}, ["a"], 50, 0)
    assert told["reference"]["retention"] is None
    assert told["reference"]["after"]["value"] == pytest.approx(0.25)
