"""The digest of weights, and what moved."""

import pytest
import torch

from vla_tune.policies.weights import moved_groups, weights_digest

NAMES = ("model.text_model.layers.0.mlp.up_proj.weight", "model.text_model.layers.0.input_layernorm.weight", "lm_head.weight")


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(3, 4, generator=generator) for name in NAMES}


def test_digest_ignores_order_and_layout_but_nothing_else():
    one = state()
    digest = weights_digest(one)
    assert weights_digest({name: one[name].T.contiguous().T for name in reversed(NAMES)}) == digest
    changed = state()
    changed[NAMES[0]][0, 0] = torch.nextafter(changed[NAMES[0]][0, 0], torch.tensor(10.0))
    assert weights_digest(changed) != digest
    assert weights_digest({**one, NAMES[0]: one[NAMES[0]].reshape(4, 3)}) != digest
    assert weights_digest({**one, NAMES[0]: one[NAMES[0]].bfloat16()}) != digest
    assert weights_digest({"count": torch.tensor(3)}).startswith("sha256:")


def test_groups_by_hand():
    base, tuned = state(), state()
    base[NAMES[0]] = torch.full((3, 4), 2.0)
    tuned[NAMES[0]] = base[NAMES[0]].clone()
    tuned[NAMES[0]][1, 1] = 5.0
    base[NAMES[1]] = tuned[NAMES[1]] = torch.zeros(3, 4)
    layer, head = moved_groups(base, tuned)
    assert (layer.group, layer.tensors, layer.parameters, layer.moved) == ("layers.0", 2, 24, 1)
    assert layer.largest == 3
    assert layer.relative == pytest.approx(3 / 48**0.5)
    assert (head.group, head.moved, head.relative, head.largest) == ("head", 0, 0, 0)


def test_a_rounded_policy_has_not_moved():
    base = state()
    rounded = {name: tensor.bfloat16() for name, tensor in base.items()}
    assert not any(group.moved for group in moved_groups(base, rounded))
    assert any(group.moved for group in moved_groups(base, {name: tensor.float() for name, tensor in rounded.items()}))
