"""What a stream leaves after each of its tasks and in its log, to be compared."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file


def states(run):
    """What there is after each task, by file name."""
    return {file.name: load_file(file) for file in sorted((run / "train" / "after").glob("*.safetensors"))}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, state in one.items():
        assert state.keys() == other[name].keys()
        assert all(torch.equal(tensor, other[name][key]) for key, tensor in state.items())


def fails_with(error):
    """A function that fails, to stand where another does its work."""

    def fail(*_):
        raise error

    return fail


def logged(run):
    """The log of a training, without times."""
    rows = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.endswith("_s")} for row in rows]
