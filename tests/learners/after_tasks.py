"""What a stream leaves after each of its tasks, to be compared."""

from __future__ import annotations

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
