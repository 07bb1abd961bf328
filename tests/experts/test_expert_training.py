"""Linear layers with experts: the gradients that training sees, and peft's LoRA as the case without a router."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from layers import OTHER, SHARED, explicit_probabilities, inputs, made, run, seeds, tasks_of_samples
from torch import nn

from vla_tune.experts.layer import ExpertLinear, Routing


def gradients(layer, x, task, slope):
    layer.zero_grad()
    layer.routing.tasks = task
    (layer(x) * slope).sum().backward()
    return {name: layer.up[name].grad.clone() for name in layer.mixture(task).experts}


@given(seeds)
def test_the_gradient_of_an_expert_is_proportional_to_its_probability(seed):
    """Autograd's, against the outer products of the output's slope and A x, each times the token's probability."""
    layer, x, slope = made(seed), inputs(seed, 3, 2, 4), inputs(seed + 1, 3, 2, 3)
    found = gradients(layer, x, OTHER, slope)
    probabilities = np.array([explicit_probabilities(layer, token, OTHER) for token in x.numpy().reshape(-1, 4)])
    for slot, (name, gradient) in enumerate(found.items(), start=1):
        inner = x.numpy().reshape(-1, 4) @ layer.down[name].detach().numpy().T
        wanted = layer.scale * np.einsum("t,to,tr->or", probabilities[:, slot], slope.numpy().reshape(-1, 3), inner)
        assert np.allclose(gradient.numpy(), wanted)


def test_halving_a_constant_probability_halves_the_gradient():
    layer, x, slope = made(0), inputs(1, 3, 2, 4), inputs(2, 3, 2, 3)
    mixture = layer.mixture(SHARED)
    nn.init.zeros_(mixture.weight)
    found = []
    for share in (0.5, 0.25):
        mixture.bias.data = torch.tensor([0.75 - share, share, 0.25], dtype=torch.float64).log()
        found.append(gradients(layer, x, SHARED, slope)["0-0"])
    assert torch.allclose(found[0], 2 * found[1])


def test_the_gradient_vanishes_with_the_probability():
    layer, x, slope = made(0), inputs(1, 3, 2, 4), inputs(2, 3, 2, 3)
    mixture = layer.mixture(OTHER)
    sizes = []
    for bias in (0.0, -20.0, -60.0):
        mixture.bias.data[3] = bias
        sizes.append(float(gradients(layer, x, OTHER, slope)["1-0"].abs().max()))
        assert float(layer.down["1-0"].grad.abs().max()) <= 1e3 * sizes[-1]
    assert sizes[0] > 1e-3
    assert sizes[1] < 1e-6 * sizes[0]
    assert sizes[2] < 1e-20


@given(seeds, tasks_of_samples)
def test_only_the_experts_of_the_tasks_in_the_batch_get_gradients(seed, tasks):
    layer, x = made(seed), inputs(seed, len(tasks), 2, 4)
    layer.routing.tasks = torch.tensor(tasks)
    y = layer(x)
    used = {name for task in set(tasks) if layer.mixture(task) is not None for name in layer.mixture(task).experts}
    if used:
        y.square().sum().backward()
    assert {name for name, parameter in layer.up.items() if parameter.grad is not None} == used
    assert {task for task in (SHARED, OTHER) if layer.mixture(task).weight.grad is not None} == {SHARED, OTHER} & set(tasks)
    assert layer.weight.grad is None


# Against LoRA.


@pytest.fixture(scope="module")
def lora():
    """A function from a linear layer, rank and alpha to peft's layer around it, B random."""
    from peft import LoraConfig, inject_adapter_in_model

    def wrapped(base, rank, alpha):
        model = inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0"]), nn.Sequential(base))
        nn.init.normal_(model[0].lora_B["default"].weight)
        return model[0]

    return wrapped


@pytest.mark.parametrize(("rank", "alpha", "bias"), [(1, 1, True), (4, 8, True), (3, 16, False)])
def test_one_expert_without_a_router_is_the_lora_of_peft(lora, rank, alpha, bias):
    torch.manual_seed(0)
    base = nn.Linear(6, 5, bias=bias)
    other = lora(nn.Linear(6, 5, bias=bias), rank, alpha)
    other.base_layer.load_state_dict(base.state_dict())
    layer = ExpertLinear(base, Routing(), rank=rank, scale=alpha / rank)
    layer.add_expert("0-0")
    layer.add_mixture(0, ["0-0"], routed=False)
    layer.down["0-0"].data.copy_(other.lora_A["default"].weight)
    layer.up["0-0"].data.copy_(other.lora_B["default"].weight)
    x = torch.randn(3, 2, 6)
    torch.testing.assert_close(run(layer, x, 0), other(x).detach(), rtol=1e-6, atol=1e-6)
    other.merge()
    torch.testing.assert_close(layer.merged(0, None), other.base_layer.weight.detach(), rtol=1e-6, atol=1e-6)


def test_experts_begin_as_the_lora_of_peft_does(lora):
    """The same distribution, drawn from the same seed."""
    fresh = lora(nn.Linear(64, 5), 8, 8)
    layer = ExpertLinear(nn.Linear(64, 5), Routing(), rank=8, scale=1.0)
    torch.manual_seed(3)
    fresh.reset_lora_parameters("default", init_lora_weights=True)
    torch.manual_seed(3)
    layer.add_expert("0-0")
    assert torch.equal(layer.down["0-0"], fresh.lora_A["default"].weight)
    assert torch.equal(layer.up["0-0"], fresh.lora_B["default"].weight)
