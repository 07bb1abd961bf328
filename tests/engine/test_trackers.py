"""Trackers: what they are sent, and that none of them stops a training."""

from __future__ import annotations

import json
import sys

import pytest

from vla_tune.config import load_config
from vla_tune.engine.log import open_log
from vla_tune.engine.trackers import open_trackers, scalars


@pytest.fixture
def tracked():
    """The demo's configuration with these trackers."""
    return lambda *names: load_config("demo", [f"train.trackers=[{','.join(names)}]"])


class Fake:
    """A tracker as accelerate makes them; it notes what it is told, and fails where it is said."""

    fails = ""

    def __init__(self, run_name, **settings):
        self.told = type(self).told = [("made", run_name)]
        self.settings = settings
        self._fail("made")

    def _fail(self, what):
        if self.fails == what:
            raise RuntimeError(f"the service is down\nat {what}")

    def start(self):
        self._fail("start")

    def store_init_configuration(self, values):
        self._fail("configuration")
        self.told.append(("configuration", values))

    def log(self, values, step):
        self._fail("log")
        self.told.append((step, values))

    def finish(self):
        self._fail("finish")
        self.told.append(("finish", None))


def write_two_rows(config, folder):
    with open_trackers(config, folder, 0) as trackers, open_log(folder, trackers) as log:
        log.write({"step": 1, "loss": 2.0, "energy_shed": [0.5, None, 1.5], "cosine": [None]})
        log.write({"step": 2, "loss": 1.0})


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_rows_go_to_the_trackers_and_to_the_file(tracked, tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.tracking.WandBTracker", Fake)
    write_two_rows(tracked("wandb"), tmp_path)
    (_, values) = Fake.told[1]
    assert values["train.lr"] == tracked().train.lr
    assert values["rollout.tasks"] == str(tracked().rollout.tasks)
    assert [one for one in Fake.told if one[0] != "configuration"] == [
        ("made", "vla-tune"),
        (1, {"loss": 2.0, "energy_shed": 1.0}),
        (2, {"loss": 1.0}),
        ("finish", None),
    ]
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]


@pytest.mark.parametrize("when", ["made", "start", "configuration", "log", "finish"])
def test_a_tracker_that_fails_is_told_once_and_stops_nothing(tracked, tmp_path, monkeypatch, capsys, when):
    monkeypatch.setattr("accelerate.tracking.TrackioTracker", type("Failing", (Fake,), {"fails": when}))
    monkeypatch.setattr("accelerate.tracking.WandBTracker", type("Sound", (Fake,), {}))
    write_two_rows(tracked("trackio", "wandb"), tmp_path)
    told = capsys.readouterr().err
    assert told.count("warning") == 1
    assert f"train.trackers: trackio is left out from here on, it failed (the service is down at {when})" in told
    assert [row["loss"] for row in rows(tmp_path)] == [2.0, 1.0]


def test_one_that_is_not_installed_is_told(tracked, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    write_two_rows(tracked("wandb"), tmp_path)
    assert capsys.readouterr().err.count("train.trackers: wandb is left out, it is not installed here") == 1
    assert len(rows(tmp_path)) == 2


def test_tensorboard_reads_what_was_logged(tracked, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_two_rows(tracked("tensorboard"), tmp_path)
    events = EventAccumulator(str(tmp_path / "trackers" / "tensorboard")).Reload()
    assert [(one.step, one.value) for one in events.Scalars("loss")] == [(1, 2.0), (2, 1.0)]
    assert [one.value for one in events.Scalars("energy_shed")] == [1.0]


def test_a_list_is_sent_as_the_mean_of_its_numbers():
    assert scalars({"step": 3, "a": [1, None, 3], "b": [], "c": None, "d": 0}) == {"a": 2.0, "d": 0.0}
