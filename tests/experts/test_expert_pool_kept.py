"""Expert layers of a small model: routers that give way, what comes back from a file, what is watched, and merging."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pools import HIDDEN, PLACES, WIDTH, constant_gates, everywhere, inputs, learn, outputs, own, pool_of, train, trains
from safetensors.torch import load, save

from vla_tune.experts.pool import mean_shares, top_slots

# Routers that give way.


def test_a_router_that_does_not_look_gives_way_without_a_trace(pool):
    learn(pool, 0)
    learn(pool, 1)
    shares = constant_gates(pool, 1)
    first, before, numbers = outputs(pool, 0), outputs(pool, 1), pool.count()
    pool.settle(1, shares)
    torch.testing.assert_close(outputs(pool, 1), before, rtol=1e-5, atol=1e-6)
    assert torch.equal(outputs(pool, 0), first)
    rows = 2 * 5 * (WIDTH + 1 + HIDDEN + 1)  # of the routers that went: five slots in each of four layers
    assert pool.count() == {**numbers, "routers": numbers["routers"] - rows + 4 * 4}
    for name, layer in pool.layers.items():
        assert layer.mixture(1).factors.tolist() == pytest.approx([1, 1, shares[name]["0-0"], shares[name]["0-1"]])
    with pool.merged(1, {}):
        torch.testing.assert_close(pool.model(inputs()), before, rtol=1e-4, atol=1e-5)


def test_a_settled_task_trains_its_factors_and_experts(pool):
    learn(pool, 0)
    learn(pool, 1)
    pool.settle(1, constant_gates(pool, 1))
    wanted = {f"{place}.{part}" for place in PLACES for part in ("down.1-0", "up.1-0", "down.1-1", "up.1-1", "mixtures.1.factors")}
    assert trains(pool) == wanted
    before = {name: p.detach().clone() for name, p in pool.model.named_parameters()}
    train(pool, 1)
    assert {name for name, p in pool.model.named_parameters() if not torch.equal(p, before[name])} == wanted
    pool.freeze()
    assert trains(pool) == set()


# What comes back.


@pytest.fixture
def learnt(pool):
    """Four tasks, pruned, one without routers, one whose routers gave way, one in some layers only."""
    learn(pool, 0)
    pool.keep(0, {**everywhere("0-1"), PLACES[1]: []})
    learn(pool, 2, 1, routed=False, old=lambda _: False)
    learn(pool, 3, 1)
    pool.settle(3, constant_gates(pool, 3))
    train(pool, 3)
    pool.freeze()
    pool.grow(10, 2, PLACES[1:3])
    train(pool, 10)
    return pool


def test_a_saved_pool_comes_back_to_the_last_bit(stock, learnt):
    state = load(save({name: value.contiguous() for name, value in learnt.state_dict().items()}))
    assert sum(value.numel() for value in state.values()) == sum(learnt.count().values())
    other = pool_of(stock)
    other.load(state, learnt.structure())
    assert trains(other) == set()
    assert (other.count(), other.structure()) == (learnt.count(), learnt.structure())
    for tasks in (None, 0, 2, 3, 10, 5, [0, 2, 10, -1, 3, 0]):
        assert torch.equal(outputs(other, tasks), outputs(learnt, tasks))
    assert [name for name, _ in other.model.named_parameters()] == [name for name, _ in learnt.model.named_parameters()]
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


def test_loading_forgets_what_was_there(stock, learnt):
    other = pool_of(stock)
    for task in (0, 4):
        learn(other, task, 3)
    other.load(learnt.state_dict(), learnt.structure())
    assert list(other.state_dict()) == list(learnt.state_dict())
    assert list(other.model.state_dict()) == list(learnt.model.state_dict())
    for tasks in (0, 4, 10, [4, 0, 2, 10, -1, 2]):
        assert torch.equal(outputs(other, tasks), outputs(learnt, tasks))


def test_a_loaded_pool_is_a_copy(stock, learnt):
    other = pool_of(stock)
    other.load(learnt.state_dict(), learnt.structure())
    before = outputs(learnt, 10)
    other.thaw(10)
    train(other, 10)
    assert torch.equal(outputs(learnt, 10), before)
    assert not torch.equal(outputs(other, 10), before)


def test_a_loaded_pool_goes_on_growing_as_the_one_that_was_saved(stock, learnt):
    other = pool_of(stock)
    other.load(learnt.state_dict(), learnt.structure())
    for one in (learnt, other):
        torch.manual_seed(3)
        learn(one, 11)
    assert trains(other) == trains(learnt) == own(11, 2)
    assert other.structure() == learnt.structure()
    assert torch.equal(outputs(other, 11), outputs(learnt, 11))


def test_an_empty_pool_can_be_saved_too(stock, pool):
    other = pool_of(stock)
    learn(other, 0)
    other.load(pool.state_dict(), pool.structure())
    assert torch.equal(outputs(other, 0), stock(inputs()))


# Looking at it.


def test_routers_are_watched_by_layer(pool):
    learn(pool, 0)
    pool.keep(0, {PLACES[0]: ["0-0"], PLACES[3]: ["0-0", "0-1"]})
    with torch.no_grad(), pool.routed(0), pool.watched() as seen:
        pool.model(inputs(1, 2))
        pool.model(inputs(2, 3))
    outputs(pool, 0)
    assert {name: [tuple(call.shape) for call in calls] for name, calls in seen.items()} == {
        PLACES[0]: [(8, 2), (12, 2)],
        PLACES[1]: [],
        PLACES[2]: [],
        PLACES[3]: [(8, 3), (12, 3)],
    }


def test_tokens_that_do_not_count_are_not_watched(pool):
    learn(pool, 0)
    counted = torch.tensor([[True, True, False, False], [True, True, True, False]])
    with torch.no_grad(), pool.routed(0), pool.watched(lambda: counted) as some:
        pool.model(inputs(1, 2))
        pool.model(inputs(2, 3))  # of another shape: counts whole
    with torch.no_grad(), pool.routed(0), pool.watched() as all_of:
        pool.model(inputs(1, 2))
        pool.model(inputs(2, 3))
    for name, (first, second) in some.items():
        assert torch.equal(first, all_of[name][0][counted.flatten()])
        assert torch.equal(second, all_of[name][1])


def test_watched_probabilities_lead_back_to_the_routers(pool):
    pool.grow(0, 2, PLACES)
    with pool.routed(0), pool.watched() as seen:
        pool.model(inputs())
    torch.stack([call[:, 1:].sum() for calls in seen.values() for call in calls]).sum().backward()
    assert all(float(layer.mixture(0).bias.grad.abs().max()) > 0 for layer in pool.layers.values())


@given(st.lists(st.integers(1, 8), min_size=1, max_size=3), st.integers(1, 4), st.integers(0, 2**31))
def test_shares_and_first_choices_are_over_all_tokens(counts, slots, seed):
    generator = torch.Generator().manual_seed(seed)
    calls = [torch.rand(count, slots, generator=generator).softmax(-1) for count in counts]
    rows = [row for call in calls for row in call.tolist()]
    expected = [sum(row[slot] for row in rows) / len(rows) for slot in range(slots)]
    assert mean_shares(calls).tolist() == pytest.approx(expected)
    assert top_slots(calls).tolist() == [row.index(max(row)) for row in rows]


# Merged.


def test_merged_a_task_is_a_stock_model_where_gates_are_constant(stock, pool):
    learn(pool, 0)
    with torch.no_grad():
        for layer in pool.layers.values():
            layer.mixture(0).weight.zero_()
    wanted = outputs(pool, 0)
    with torch.no_grad(), pool.routed(0), pool.watched() as seen:
        pool.model(inputs())
    shares = {name: mean_shares(calls) for name, calls in seen.items()}
    other = copy.deepcopy(stock)
    with pool.merged(0, shares):
        assert list(pool.model.state_dict()) == list(stock.state_dict())
        other.load_state_dict(pool.model.state_dict())
    torch.testing.assert_close(other(inputs()), wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(outputs(pool, 0), wanted)


def test_merged_a_task_without_routers_needs_no_shares(stock, pool):
    learn(pool, 0, routed=False)
    wanted = outputs(pool, 0)
    with pool.merged(0, {}):
        torch.testing.assert_close(pool.model(inputs()), wanted, rtol=1e-4, atol=1e-5)
    with pool.merged(7, {}):
        assert torch.equal(pool.model(inputs()), stock(inputs()))
    assert torch.equal(outputs(pool, None), stock(inputs()))
