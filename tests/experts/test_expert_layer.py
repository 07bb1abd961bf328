"""Linear layers with experts: against a loop over tokens and experts, and by what must not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layers import ABSENT, OTHER, SHARED, WHOLE, explicit, explicit_probabilities, inputs, made, run, seeds, tasks_of_samples
from torch import nn

from vla_tune.experts.layer import BASE, ExpertLinear, Routing, gates


def watched(layer, x, task):
    seen = []
    layer.routing.watch = lambda _, probabilities: seen.append(probabilities.detach())
    try:
        run(layer, x, task)
    finally:
        layer.routing.watch = None
    return seen


@pytest.mark.parametrize("tasks", [None, ABSENT, -1, [ABSENT] * 3, [-1] * 3, [-1, ABSENT, -1]])
def test_without_experts_the_layer_is_exactly_the_stock_one(tasks):
    layer, x = made(0), inputs(1, 3, 5, 4)
    assert torch.equal(run(layer, x, tasks), layer.base(x))


@pytest.mark.parametrize("routed", [True, False])
def test_a_new_expert_changes_nothing_at_all(routed):
    layer, x = made(0), inputs(1, 3, 5, 4)
    layer.add_expert("3-0")
    layer.add_expert("3-1")
    layer.add_mixture(3, ["3-0", "3-1"], routed=routed)
    assert torch.equal(run(layer, x, 3), layer.base(x))
    assert torch.equal(run(layer, x, [3, -1, 3]), layer.base(x))
    assert all(float(layer.down[name].detach().abs().max()) > 0 for name in ("3-0", "3-1"))


def test_the_layer_looks_like_the_one_inside():
    layer = made(0)
    assert (layer.in_features, layer.out_features) == (4, 3)
    assert layer.weight is layer.base.weight
    assert layer.bias is layer.base.bias
    assert not layer.weight.requires_grad
    assert made(0, bias=False).bias is None


def test_new_experts_have_the_type_of_the_layer():
    layer = ExpertLinear(nn.Linear(4, 3, dtype=torch.bfloat16), Routing(), rank=2, scale=1.0)
    layer.add_expert("0-0")
    layer.add_mixture(0, ["0-0"])
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    assert run(layer, torch.ones(2, 4, dtype=torch.bfloat16), [0, -1]).dtype == torch.bfloat16


@given(seeds, st.sampled_from([SHARED, OTHER, WHOLE, ABSENT]), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 5))
def test_the_layer_is_the_loop_over_its_experts(seed, task, batch, tokens, rank, top_k):
    layer, x = made(seed, rank=rank, top_k=top_k), inputs(seed, batch, tokens, 4)
    assert torch.allclose(run(layer, x, task), explicit(layer, x, task), rtol=1e-10, atol=1e-10)


def test_inputs_without_tokens_are_routed_too():
    layer, x = made(0), inputs(1, 3, 4)
    assert torch.allclose(run(layer, x, OTHER), explicit(layer, x, OTHER))


@given(seeds, st.sampled_from([SHARED, OTHER]), st.integers(0, 5))
def test_probabilities_sum_to_one_and_are_those_of_the_loop(seed, task, top_k):
    layer, x = made(seed, top_k=top_k), inputs(seed, 3, 2, 4)
    (probabilities,) = watched(layer, x, task)
    assert probabilities.shape == (3, 2, 1 + len(layer.mixture(task).experts))
    assert torch.allclose(probabilities.sum(-1), torch.ones(3, 2, dtype=torch.float64))
    expected = [[explicit_probabilities(layer, token, task) for token in row] for row in x.numpy()]
    assert np.allclose(probabilities.numpy(), expected)


def test_only_layers_that_route_are_watched():
    layer, x = made(0), inputs(1, 3, 2, 4)
    assert watched(layer, x, None) == watched(layer, x, ABSENT) == watched(layer, x, WHOLE) == []
    assert [len(one) for one in watched(layer, x, [OTHER, SHARED, OTHER])] == [1, 2]


def test_a_new_router_deals_in_equal_parts():
    layer = made(0)
    layer.add_mixture(3, ["0-0", "0-1", "1-0"])
    (probabilities,) = watched(layer, inputs(1, 2, 2, 4), 3)
    assert torch.equal(probabilities, torch.full((2, 2, 4), 0.25, dtype=torch.float64))


@given(seeds, st.integers(1, 8), st.integers(1, 10))
def test_top_k_keeps_exactly_k_slots_and_their_proportions(seed, slots, top_k):
    logits = inputs(seed, 3, slots)
    found, whole = gates(logits.T, top_k).T, gates(logits.T, 0).T
    kept = found > 0
    assert torch.equal(kept.sum(-1), torch.full((3,), min(top_k, slots)))
    assert torch.allclose(found.sum(-1), torch.ones(3, dtype=torch.float64))
    for row in range(3):
        assert float(whole[row][kept[row]].min()) > max(whole[row][~kept[row]].tolist(), default=0.0)
        assert torch.allclose(found[row][kept[row]], whole[row][kept[row]] / whole[row][kept[row]].sum())


@pytest.mark.parametrize("logits", [[0.0, 0.0, 0.0, 0.0], [1.0, 3.0, 2.0, 2.0]])
def test_top_k_keeps_no_more_than_k_slots_where_logits_are_equal(logits):
    assert int((gates(torch.tensor(logits), 2) > 0).sum()) == 2


@given(st.integers(2, 40), st.integers(1, 6))
def test_of_equal_slots_the_first_are_used(slots, top_k):
    """So a new router leaves the layer as it is among its choices, and the candidates before old experts."""
    assert gates(torch.zeros(slots, 3), top_k).gt(0).int().argmin(0).tolist() == [0 if top_k >= slots else top_k] * 3


@given(seeds, tasks_of_samples, st.integers(1, 3), st.integers(0, 3))
def test_a_mixed_batch_is_each_sample_alone(seed, tasks, tokens, top_k):
    layer, x = made(seed, top_k=top_k), inputs(seed, len(tasks), tokens, 4)
    whole = run(layer, x, tasks)
    for number, task in enumerate(tasks):
        alone = x[number : number + 1]
        assert torch.allclose(whole[number : number + 1], run(layer, alone, task), rtol=1e-12, atol=1e-12)
        assert torch.allclose(whole[number : number + 1], run(layer, alone, [task]), rtol=1e-12, atol=1e-12)


@given(seeds, tasks_of_samples.filter(lambda tasks: len(tasks) > 1), st.integers(0, 5), st.randoms(use_true_random=False))
def test_neither_order_nor_company_changes_a_sample(seed, tasks, cut, random):
    layer, x = made(seed), inputs(seed, len(tasks), 2, 4)
    whole = run(layer, x, tasks)
    order = random.sample(range(len(tasks)), len(tasks))
    assert torch.allclose(run(layer, x[order], [tasks[one] for one in order]), whole[order], rtol=1e-12, atol=1e-12)
    cut = 1 + cut % (len(tasks) - 1)
    parts = [run(layer, x[:cut], tasks[:cut]), run(layer, x[cut:], tasks[cut:])]
    assert torch.allclose(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)


@given(seeds, tasks_of_samples, st.integers(1, 4))
def test_several_rows_of_a_sample_lie_together(seed, tasks, repeat):
    layer, x = made(seed), inputs(seed, len(tasks) * repeat, 2, 4)
    dealt = [task for task in tasks for _ in range(repeat)]
    assert torch.equal(run(layer, x, tasks), run(layer, x, dealt))


def test_rows_that_cannot_be_dealt_are_refused():
    with pytest.raises(ValueError, match="5 rows cannot be dealt to 2 samples"):
        run(made(0), inputs(0, 5, 2, 4), [0, 1])


@given(seeds, st.sampled_from([SHARED, OTHER]))
def test_merged_is_the_layer_where_gates_do_not_look_at_the_input(seed, task):
    layer, x = made(seed), inputs(seed, 3, 2, 4)
    nn.init.zeros_(layer.mixture(task).weight)
    shares = layer.mixture(task).bias.detach().softmax(0)[1:]
    merged = nn.functional.linear(x, layer.merged(task, shares), layer.bias.detach())
    assert torch.allclose(merged, run(layer, x, task), rtol=1e-10, atol=1e-10)


@given(seeds)
def test_merged_is_the_layer_where_nothing_is_routed(seed):
    layer, x = made(seed), inputs(seed, 3, 2, 4)
    merged = nn.functional.linear(x, layer.merged(WHOLE, None), layer.bias.detach())
    assert torch.allclose(merged, run(layer, x, WHOLE), rtol=1e-10, atol=1e-10)


def test_merging_leaves_the_layer_alone():
    layer = made(0)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    assert torch.equal(layer.merged(ABSENT, None), layer.weight)
    assert not layer.merged(WHOLE, None).requires_grad
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_forgotten_experts_take_their_rows_of_the_router_along():
    layer, x = made(0), inputs(1, 3, 2, 4)
    mixture = layer.mixture(OTHER)
    weight, bias = mixture.weight.detach().clone(), mixture.bias.detach().clone()
    mixture.bias.requires_grad = False
    mixture.keep(["1-0", "0-1"])
    assert mixture.experts == ["1-0", "0-1"]
    assert torch.equal(mixture.weight, weight[[BASE, 3, 1]])
    assert torch.equal(mixture.bias, bias[[BASE, 3, 1]])
    assert (mixture.weight.requires_grad, mixture.bias.requires_grad) == (True, False)
    assert torch.allclose(run(layer, x, OTHER), explicit(layer, x, OTHER))
    mixture.keep([])
    assert torch.equal(run(layer, x, OTHER), layer.base(x))
