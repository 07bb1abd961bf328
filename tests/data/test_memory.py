"""The decoded dataset gives the very items that LeRobotDataset gives."""

from __future__ import annotations

import torch

from vla_tune.config import DataConfig
from vla_tune.data.demonstrations import dataset_metadata, open_dataset
from vla_tune.data.memory import MemoryDataset, megabytes


def opened(root):
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

    return open_dataset(dataset_metadata(DataConfig(repo_id="local/small", root=str(root))), SmolVLAConfig(chunk_size=4, n_action_steps=2))


def test_items_equal_the_datasets(small_dataset):
    dataset = opened(small_dataset)
    memory = MemoryDataset(dataset)
    assert len(memory) == len(dataset) == 30
    for row in range(len(dataset)):
        theirs, ours = dataset[row], memory[row]
        assert theirs.keys() == ours.keys()
        for key, value in theirs.items():
            if isinstance(value, torch.Tensor):
                assert value.dtype == ours[key].dtype, key
                assert torch.equal(value, ours[key]), (row, key)
            else:
                assert value == ours[key]


def test_what_it_needs_is_told_beforehand(small_dataset):
    assert megabytes(opened(small_dataset)) == 30 * 64 * 64 * 3 / 1e6
