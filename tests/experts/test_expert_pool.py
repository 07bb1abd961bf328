"""Expert layers of a small model: what trains, what goes, and what stays as it was to the last bit."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import HIDDEN, PLACES, RANK, WIDTH, Model, everywhere, inputs, learn, outputs, own, pool_of, train, trains
from torch import nn

from vla_tune.experts.pool import ExpertPool, owner

# In the model and out of it.


def test_a_model_without_routing_or_experts_is_the_stock_one(stock, pool):
    assert trains(pool) == set()
    assert torch.equal(outputs(pool, None), stock(inputs()))
    assert torch.equal(outputs(pool, 0), stock(inputs()))
    assert torch.equal(outputs(pool, [0, 1, 2, -1, 0, 1]), stock(inputs()))


def test_detached_the_model_has_its_own_names_and_weights(stock, pool):
    learn(pool, 0)
    before = outputs(pool, 0)
    assert pool.model.state_dict().keys() != stock.state_dict().keys()
    with pool.detached(), pool.routed(0):
        assert list(pool.model.state_dict()) == list(stock.state_dict())
        assert all(torch.equal(value, stock.state_dict()[name]) for name, value in pool.model.state_dict().items())
        assert torch.equal(pool.model(inputs()), stock(inputs()))
        assert not any(isinstance(module, type(pool.layers[PLACES[0]])) for module in pool.model.modules())
    assert torch.equal(outputs(pool, 0), before)


@pytest.mark.parametrize("context", ["detached", "merged", "routed", "watched"])
def test_a_mistake_inside_leaves_all_as_it_was(pool, context):
    learn(pool, 0)
    before, names = outputs(pool, 0), list(pool.model.state_dict())
    arguments = {"merged": (7, {}), "routed": (5,)}.get(context, ())

    def mistake():
        with getattr(pool, context)(*arguments):
            raise KeyError("a mistake")

    with pytest.raises(KeyError, match="a mistake"):
        mistake()
    assert (pool.routing.tasks, pool.routing.watch) == (None, None)
    assert list(pool.model.state_dict()) == names
    assert torch.equal(outputs(pool, 0), before)


def test_layers_at_the_top_of_a_model_are_found_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    names = list(model.state_dict())
    pool = ExpertPool(model, ["0", "2"], rank=1, scale=1.0)
    pool.grow(0, 1, ["2"])
    with pool.detached():
        assert list(model.state_dict()) == names
    assert len(model) == 3


def test_routings_nest(pool):
    with pool.routed(1):
        with pool.routed(None):
            assert pool.routing.tasks is None
        assert pool.routing.tasks == 1
    assert pool.routing.tasks is None


# What trains.


def test_a_new_task_trains_its_own_experts_and_routers_and_nothing_else(pool):
    learn(pool, 0)
    assert trains(pool) == own(0, 2)
    pool.freeze()
    assert trains(pool) == set()
    pool.grow(1, 1, PLACES[2:])
    assert trains(pool) == own(1, 1, PLACES[2:])


@pytest.mark.parametrize("task", [0, 1, 2])
def test_thawing_a_frozen_pool_trains_one_task(pool, task):
    for one in range(3):
        learn(pool, one)
    pool.freeze()
    pool.thaw(task)
    assert trains(pool) == own(task, 2)
    pool.freeze()
    pool.thaw(9)
    assert trains(pool) == set()


def test_experts_of_a_task_are_not_those_of_one_whose_number_begins_alike(pool):
    for task in (1, 10):
        pool.freeze()
        pool.grow(task, 1, PLACES)
    pool.freeze()
    pool.thaw(1)
    assert trains(pool) == own(1, 1)
    assert [owner(name) for name in pool.layers[PLACES[0]].down] == [1, 10]


def test_training_moves_what_trains_and_nothing_else(stock, pool):
    learn(pool, 0)
    learn(pool, 1)
    before = {name: p.detach().clone() for name, p in pool.model.named_parameters()}
    train(pool, 1)
    after = dict(pool.model.named_parameters())
    assert {name for name in after if not torch.equal(after[name], before[name])} == own(1, 2)


def test_a_task_may_use_the_earlier_experts_that_it_is_let(pool):
    learn(pool, 0)
    learn(pool, 1, old=lambda _: False)
    learn(pool, 2, old=lambda expert: owner(expert) == 1)
    learn(pool, 3, candidates=1)
    for layer in pool.layers.values():
        assert layer.mixture(1).experts == ["1-0", "1-1"]
        assert layer.mixture(2).experts == ["2-0", "2-1", "1-0", "1-1"]
        assert layer.mixture(3).experts == ["3-0", "0-0", "0-1", "1-0", "1-1", "2-0", "2-1"]


def test_the_numbers_are_counted(pool):
    assert pool.count() == {"experts": 0, "routers": 0}
    pool.grow(0, 2, PLACES)
    pool.grow(1, 1, PLACES[:1])
    pool.grow(2, 1, PLACES[1:2], routed=False)
    sizes = RANK * (WIDTH + HIDDEN)  # of one expert, in any of these layers
    up, down = WIDTH + 1, HIDDEN + 1  # of a slot's row, with its bias
    assert pool.count() == {"experts": 10 * sizes, "routers": 2 * 3 * (up + down) + 4 * up}
    before = pool.count()  # of four experts that are not named below, a later task uses one
    pool.keep(0, {PLACES[0]: ["0-1"], PLACES[1]: ["0-0", "0-1"], PLACES[2]: ["0-0"], PLACES[3]: []})
    assert pool.count() == {"experts": before["experts"] - 3 * sizes, "routers": before["routers"] - 2 * up - 3 * down}


# What goes.


def test_own_experts_that_are_not_kept_go_and_old_ones_never_do(pool):
    learn(pool, 0)
    learn(pool, 1)
    kept = {PLACES[0]: ["0-1", "1-1"], PLACES[1]: ["1-0"], PLACES[2]: ["0-0"]}
    pool.keep(1, kept)
    experts = [list(layer.down) for layer in pool.layers.values()]
    assert experts == [["0-0", "0-1", "1-1"], ["0-0", "0-1", "1-0"], ["0-0", "0-1"], ["0-0", "0-1"]]
    assert [list(layer.up) for layer in pool.layers.values()] == experts
    for name, layer in pool.layers.items():
        assert layer.mixture(0).experts == ["0-0", "0-1"]
        assert (layer.mixture(1) is None) == (name == PLACES[3])
        if name in kept:
            assert sorted(layer.mixture(1).experts) == kept[name]


def test_pruning_leaves_what_trains_training(pool):
    learn(pool, 0)
    learn(pool, 1)
    pool.keep(1, everywhere("0-0", "1-1"))
    numbers = {f"{place}.{part}" for place in PLACES for part in ("down.1-1", "up.1-1", "mixtures.1.weight", "mixtures.1.bias")}
    assert trains(pool) == numbers


def test_what_gets_no_share_can_go_without_a_trace(pool):
    """Pruning an expert whose probability is 0 changes no output."""
    learn(pool, 0)
    with torch.no_grad():
        for layer in pool.layers.values():
            layer.mixture(0).bias[2] = -1e9
    before = outputs(pool, 0)
    pool.keep(0, everywhere("0-0"))
    torch.testing.assert_close(outputs(pool, 0), before, rtol=1e-5, atol=1e-6)


def test_a_task_that_keeps_nothing_is_the_stock_model(stock, pool):
    learn(pool, 0)
    assert not torch.equal(outputs(pool, 0), stock(inputs()))
    pool.keep(0, {})
    assert pool.count() == {"experts": 0, "routers": 0}
    assert torch.equal(outputs(pool, 0), stock(inputs()))


@settings(max_examples=15)
@given(
    st.lists(st.tuples(st.integers(1, 2), st.booleans(), st.sets(st.integers(0, 40))), min_size=1, max_size=3),
    st.integers(0, 3),
)
def test_old_tasks_stay_as_they_were_to_the_last_bit(later, top_k):
    """Tasks grow, train and prune at will; each answers ever after as at its end, alone and in a mixed batch."""
    torch.manual_seed(0)
    stock = Model()
    pool = pool_of(stock, top_k=top_k)
    learn(pool, 0)
    ends = {0: outputs(pool, 0)}
    mixed = outputs(pool, [0, -1, 0, 9, 0, -1])
    for task, (candidates, routed, dropped) in enumerate(later, start=1):
        learn(pool, task, candidates, routed=routed)
        numbers = itertools.count()
        pool.keep(
            task,
            {name: [one for one in layer.mixture(task).experts if next(numbers) not in dropped] for name, layer in pool.layers.items()},
        )
        train(pool, task)
        ends[task] = outputs(pool, task)
    for task, end in ends.items():
        assert torch.equal(outputs(pool, task).nan_to_num(), end.nan_to_num())  # some draws train too fast
    assert torch.equal(outputs(pool, [0, -1, 0, 9, 0, -1]), mixed)
    assert torch.equal(outputs(pool, None), stock(inputs()))


def test_every_sample_is_answered_as_its_task_answers(pool):
    for task in range(3):
        learn(pool, task)
    tasks = [2, 0, -1, 1, 0, 2]
    mixed = outputs(pool, tasks)
    for number, task in enumerate(tasks):
        torch.testing.assert_close(mixed[number], outputs(pool, task)[number], rtol=1e-5, atol=1e-6)
    assert len({tuple(outputs(pool, task)[0, 0].tolist()) for task in (-1, 0, 1, 2)}) == 4
