"""Parts of a robot batch."""

import torch

from vla_tune.anchors.frames import _part


def test_a_part_has_its_samples_alone_and_all_that_is_no_sample():
    batch = {
        "state": torch.arange(8).view(4, 2),
        "task": ["a", "b", "c", "d"],
        "dt": torch.tensor(0.1),
        "info": {"x": 1},
        "names": ["x", "y"],
    }
    part = _part(batch, 4, range(1, 3))
    assert part["state"].tolist() == [[2, 3], [4, 5]]
    assert part["task"] == ["b", "c"]
    assert (part["dt"], part["info"], part["names"]) == (batch["dt"], batch["info"], batch["names"])
