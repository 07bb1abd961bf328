"""MoE-Adapters' blocks beside a stock MLP: against the formula, expert by expert, sample by sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vla_tune.experts.adapters import SCALE, AdapterBlock
from vla_tune.experts.layer import Routing

D, EXPERTS, TASKS, WIDTH = 5, 6, 3, 4


class Stock(nn.Module):
    """The second half of a transformer block."""

    def __init__(self):
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(D), nn.Sequential(nn.Linear(D, 7), nn.GELU(), nn.Linear(7, D))

    def forward(self, x):
        return x + self.mlp(self.norm(x))


def made(seed=0, top_k=2, *, new=False):
    """A block with its adapters, in evaluation mode; all experts and routers random unless `new`."""
    torch.manual_seed(seed)
    stock, routing = Stock().double(), Routing()
    block = AdapterBlock(D, EXPERTS, TASKS, width=WIDTH, top_k=top_k, routing=routing).double().eval()
    if not new:
        for parameter in block.parameters():
            nn.init.normal_(parameter)
    block.attach(stock.norm, stock.mlp)
    return stock, block


def inputs(seed, batch, tokens=3):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(batch, tokens, D)))


@torch.no_grad()
def run(stock, block, x, tasks):
    block.routing.tasks = torch.tensor(tasks) if isinstance(tasks, list) else tasks
    try:
        return stock(x)
    finally:
        block.routing.tasks = None


@torch.no_grad()
def explicit(stock, block, sample, task):
    """One sample `[tokens, d]` by the formula, with numpy for all that is the adapters'."""
    y = stock(sample[None])[0].numpy()  # nothing is routed now
    if task < 0:
        return torch.from_numpy(y)
    logits = block.gate[task].numpy() @ sample[0].numpy()
    chosen = sorted(range(EXPERTS), key=lambda one: -logits[one])[: block.top_k]
    shares = np.exp(logits[chosen] - logits[chosen].max())
    for one, share in zip(chosen, shares / shares.sum(), strict=True):
        inner = np.maximum(sample.numpy() @ block.down[one].weight.numpy().T + block.down[one].bias.numpy(), 0)
        y = y + share * SCALE * (inner @ block.up[one].weight.numpy().T + block.up[one].bias.numpy())
    return torch.from_numpy(y)


seeds = st.integers(0, 2**31)
tasks_of_samples = st.lists(st.integers(-1, TASKS - 1), min_size=1, max_size=6)


@given(seeds, st.integers(0, TASKS - 1), st.integers(1, EXPERTS), st.integers(1, 4))
def test_the_hooks_add_what_the_formula_says(seed, task, top_k, batch):
    (stock, block), x = made(seed, top_k), inputs(seed, batch)
    y = run(stock, block, x, task)
    for number in range(batch):
        assert torch.allclose(y[number], explicit(stock, block, x[number], task), rtol=1e-10, atol=1e-10)


def test_whoever_calls_the_parts_of_a_block_meets_the_adapters():
    """As a policy does that runs two towers side by side."""
    (stock, block), x = made(), inputs(0, 3)
    whole = run(stock, block, x, 1)
    block.routing.tasks = 1
    with torch.no_grad():
        normed = stock.norm(x)
        assert torch.equal(x + stock.mlp(normed), whole)


@pytest.mark.parametrize("tasks", [None, -1, [-1, -1, -1]])
def test_what_belongs_to_no_task_is_exactly_as_it_was(tasks):
    (stock, block), x = made(), inputs(0, 3)
    plain = Stock().double()
    plain.load_state_dict(stock.state_dict())
    assert torch.equal(run(stock, block, x, tasks), plain(x).detach())
    assert list(stock.state_dict()) == list(plain.state_dict())


def test_new_adapters_change_nothing():
    (stock, block), x = made(new=True), inputs(0, 3)
    assert torch.equal(run(stock, block, x, 0), run(stock, block, x, None))
    block.train()
    assert torch.equal(run(stock, block, x, [0, 2, 1]), run(stock, block, x, None))


@given(seeds, st.integers(1, EXPERTS + 2), st.integers(0, TASKS - 1))
def test_every_sample_uses_exactly_k_experts_and_their_shares_sum_to_one(seed, top_k, task):
    _, block = made(seed, top_k)
    for mode in (True, False):
        gates = block.train(mode).gates(inputs(seed, 5)[:, 0], task).detach()
        assert torch.equal((gates > 0).sum(1), torch.full((5,), min(top_k, EXPERTS)))
        assert torch.allclose(gates.sum(1), torch.ones(5, dtype=torch.float64))


def test_new_routers_too_use_no_more_than_k_experts():
    _, block = made(new=True)
    assert (block.gates(inputs(0, 5)[:, 0], 0) > 0).sum(1).tolist() == [2] * 5


@given(seeds)
def test_experts_that_are_not_chosen_take_no_part(seed):
    (stock, block), x = made(seed), inputs(seed, 1)
    before = run(stock, block, x, 0)
    chosen = (block.gates(x[:, 0], 0)[0] > 0).tolist()
    with torch.no_grad():
        for one in range(EXPERTS):
            if not chosen[one]:
                block.down[one].weight.fill_(torch.nan)
    assert torch.equal(run(stock, block, x, 0), before)
    block.routing.tasks = 0
    stock(x).sum().backward()
    assert [block.up[one].weight.grad is not None for one in range(EXPERTS)] == chosen


def test_the_first_token_alone_chooses():
    (stock, block), x = made(), inputs(0, 1, tokens=4)
    shuffled = x[:, [0, 3, 1, 2]]
    assert torch.allclose(run(stock, block, shuffled, 0), run(stock, block, x, 0)[:, [0, 3, 1, 2]])
    other = x.clone()
    other[:, 1:] += 1
    assert torch.equal(block.gates(other[:, 0], 0), block.gates(x[:, 0], 0))
    assert torch.allclose(run(stock, block, other, 0)[:, 0], run(stock, block, x, 0)[:, 0])


@given(seeds, tasks_of_samples)
def test_a_mixed_batch_is_each_sample_alone(seed, tasks):
    (stock, block), x = made(seed), inputs(seed, len(tasks))
    whole = run(stock, block, x, tasks)
    for number, task in enumerate(tasks):
        alone = run(stock, block, x[number : number + 1], task)[0]
        assert torch.allclose(whole[number], alone, rtol=1e-12, atol=1e-12)
        assert torch.allclose(whole[number], explicit(stock, block, x[number], task), rtol=1e-10, atol=1e-10)


@given(seeds, tasks_of_samples, st.randoms(use_true_random=False))
def test_the_order_of_a_batch_changes_no_sample(seed, tasks, random):
    (stock, block), x = made(seed), inputs(seed, len(tasks))
    order = random.sample(range(len(tasks)), len(tasks))
    shuffled = run(stock, block, x[order], [tasks[one] for one in order])
    assert torch.allclose(shuffled, run(stock, block, x, tasks)[order], rtol=1e-12, atol=1e-12)


@given(seeds, tasks_of_samples, st.integers(1, 3))
def test_several_pictures_of_a_sample_go_to_its_task(seed, tasks, pictures):
    (stock, block), x = made(seed), inputs(seed, len(tasks) * pictures)
    dealt = [task for task in tasks for _ in range(pictures)]
    assert torch.equal(run(stock, block, x, tasks), run(stock, block, x, dealt))


def test_noise_is_for_training_only():
    (stock, block), x = made(), inputs(0, 4)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert torch.equal(run(stock, block, x, 0), run(stock, block, x, 0))
    assert torch.equal(block.gates(x[:, 0], 0), block.gates(x[:, 0], 0))
    assert torch.equal(torch.get_rng_state(), state)
    block.train()
    assert not torch.equal(block.gates(x[:, 0], 0), block.gates(x[:, 0], 0))
    assert not torch.equal(run(stock, block, x, 0), run(stock, block, x, 0))


def test_the_noise_has_the_deviation_that_is_learnt():
    """With all experts in use, differences of log shares are those of noisy logits."""
    _, block = made(top_k=EXPERTS)
    block.train()
    first = inputs(0, 1)[:, 0]
    torch.manual_seed(0)
    with torch.no_grad():
        shares = block.gates(first.expand(20000, D), 0).log()
        wanted = nn.functional.softplus(first[0] @ block.noise[0].T) + 1e-2
        logits = first[0] @ block.gate[0].T
    differences = shares - shares[:, :1]
    assert torch.allclose(differences.mean(0)[1:], (logits - logits[0])[1:], atol=0.1)
    assert torch.allclose(differences.std(0)[1:], (wanted[1:].square() + wanted[0].square()).sqrt(), rtol=0.03)


def test_the_deviation_of_the_noise_is_learnt():
    (stock, block), x = made(), inputs(0, 4)
    block.routing.tasks = 1
    block.train()
    stock(x).square().sum().backward()
    assert [parameter.grad is not None for parameter in block.noise] == [False, True, False]
    assert [parameter.grad is not None for parameter in block.gate] == [False, True, False]
    assert float(block.noise[1].grad.abs().max()) > 0


def test_uses_are_counted_in_training_only():
    (stock, block), x = made(top_k=2), inputs(0, 4)
    run(stock, block, x, 0)
    assert block.used.tolist() == [0] * EXPERTS
    block.train()
    run(stock, block, x, [0, 1, -1, 2])
    assert int(block.used.sum()) == 3 * 2
    run(stock, block, x, None)
    assert int(block.used.sum()) == 3 * 2


@given(st.lists(st.integers(0, 20), min_size=EXPERTS, max_size=EXPERTS), st.sets(st.integers(0, EXPERTS - 1)), st.integers(0, EXPERTS))
def test_the_most_used_that_are_not_frozen_are_found(used, frozen, count):
    _, block = made(new=True)
    block.used = torch.tensor(used)
    found = block.most_used(count, list(frozen))
    free = [one for one in range(EXPERTS) if one not in frozen]
    assert found == sorted(free, key=lambda one: (-used[one], one))[:count]
