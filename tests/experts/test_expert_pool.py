"""All expert layers of a small model: what trains, what goes, what stays as it was to the last bit, and what comes back from a file."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn

from vla_tune.experts.pool import ExpertPool, mean_shares, owner, top_slots

PLACES = ["blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down"]
RANK, WIDTH, HIDDEN = 2, 6, 5


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).relu())


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks, self.head = nn.Sequential(Block(), Block()), nn.Linear(WIDTH, 3)

    def forward(self, x):
        return self.head(self.blocks(x))


@pytest.fixture
def stock():
    torch.manual_seed(0)
    return Model()


def pool_of(stock, **options):
    return ExpertPool(copy.deepcopy(stock), PLACES, **{"rank": RANK, "scale": 2.0, **options})


@pytest.fixture
def pool(stock):
    return pool_of(stock)


def inputs(seed=1, count=6):
    return torch.randn(count, 4, WIDTH, generator=torch.Generator().manual_seed(seed))


def outputs(pool, tasks, x=None):
    with torch.no_grad(), pool.routed(torch.tensor(tasks) if isinstance(tasks, list) else tasks):
        return pool.model(inputs() if x is None else x)


def train(pool, task, steps=3):
    """Some steps of SGD on what trains."""
    torch.manual_seed(task)
    optimizer = torch.optim.SGD([p for p in pool.model.parameters() if p.requires_grad], lr=0.5)
    for step in range(steps):
        optimizer.zero_grad()
        with pool.routed(task):
            (pool.model(inputs(100 * task + step)) - 1).square().mean().backward()
        optimizer.step()


def learn(pool, task, candidates=2, **options):
    pool.freeze()
    pool.grow(task, candidates, PLACES, **options)
    train(pool, task)


def trains(pool):
    """The names of all parameters of the model that train."""
    return {name for name, p in pool.model.named_parameters() if p.requires_grad}


def own(task, experts, places=PLACES):
    """The names of the experts of a task and of its routers."""
    parts = [f"{part}.{task}-{number}" for part in ("down", "up") for number in range(experts)]
    return {f"{place}.{part}" for place in places for part in [*parts, f"mixtures.{task}.weight", f"mixtures.{task}.bias"]}


def everywhere(*experts):
    """What `keep` takes, the same for all layers."""
    return {place: list(experts) for place in PLACES}


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


# Routers that give way.


def constant_gates(pool, task):
    """Make a task's routers blind to what they route, and look at what they then say, by layer and name."""
    with torch.no_grad():
        for layer in pool.layers.values():
            layer.mixture(task).weight.zero_()
    with torch.no_grad(), pool.routed(task), pool.watched() as seen:
        pool.model(inputs())
    slots = {name: ["base", *pool.layers[name].mixture(task).experts] for name in seen}
    return {name: dict(zip(slots[name], mean_shares(calls).tolist(), strict=True)) for name, calls in seen.items()}


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
