"""Weights in bfloat16 train as their float32 masters do, also after their state was saved and loaded by lerobot."""

import copy

import pytest
import torch
from torch import nn

from vla_tune.optim.masters import Masters

LR = 1e-4


def model_of(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)).to(dtype)
    model[2].weight.data = model[2].weight.data.float()  # policies are mixed too
    return model


def optimizer_of(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    masters = Masters(optimizer)
    optimizer.register_step_post_hook(lambda *_: masters.after_step())
    return optimizer


def gradients(model, step):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=generator).to(p.dtype) for p in model.parameters()]


def train(model, optimizer, steps):
    for step in steps:
        for parameter, gradient in zip(model.parameters(), gradients(model, step), strict=True):
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad()


def test_they_are_the_rounded_masters():
    model = model_of(torch.bfloat16)
    start = copy.deepcopy(model)
    masters = [nn.Parameter(p.detach().float()) for p in model.parameters()]
    plain = torch.optim.AdamW(masters, lr=LR)
    for step in range(10):
        for master, gradient in zip(masters, gradients(model, step), strict=True):
            master.grad = gradient.float()
        plain.step()
    storage = [p.data_ptr() for p in model.parameters()]
    train(model, optimizer_of(model), range(10))
    assert all(torch.equal(p, master.to(p.dtype)) for p, master in zip(model.parameters(), masters, strict=True))
    assert storage == [p.data_ptr() for p in model.parameters()]
    rounded = copy.deepcopy(start)
    train(rounded, torch.optim.AdamW(rounded.parameters(), lr=LR), range(10))
    moved = [sum(int((a != b).sum()) for a, b in zip(one[0].parameters(), start[0].parameters(), strict=True)) for one in (model, rounded)]
    assert moved[0] > 1.5 * moved[1]


@pytest.mark.parametrize("before", [0, 3])
def test_saved_and_loaded_they_go_on_to_the_bit(before, tmp_path):
    from lerobot.optim.optimizers import load_optimizer_state, save_optimizer_state

    model = model_of(torch.bfloat16)
    optimizer = optimizer_of(model)
    train(model, optimizer, range(before))
    save_optimizer_state(optimizer, tmp_path)
    resumed = copy.deepcopy(model)
    again = load_optimizer_state(optimizer_of(resumed), tmp_path)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(model.parameters(), resumed.parameters(), strict=True))
    again.load_state_dict(again.state_dict())  # as accelerate does
    train(model, optimizer, range(before, 12))
    train(resumed, again, range(before, 12))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))
    state, other = optimizer.state_dict()["state"], again.state_dict()["state"]
    assert all(torch.equal(tensor, other[number][key]) for number, one in state.items() for key, tensor in one.items())


def test_float32_is_left_alone():
    model = model_of(torch.float32)
    plain = copy.deepcopy(model)
    optimizer, stock = optimizer_of(model), torch.optim.AdamW(plain.parameters(), lr=LR)
    train(model, optimizer, range(3))
    train(plain, stock, range(3))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert {key for one in optimizer.state_dict()["state"].values() for key in one} == {"step", "exp_avg", "exp_avg_sq"}
