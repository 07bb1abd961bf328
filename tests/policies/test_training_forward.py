"""What training asks of every adapter: draws of the flow, means over parts of a batch, activation checkpointing, precision."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import KINDS
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_tune.experts.pool import ExpertPool
from vla_tune.policies import adapt
from vla_tune.policies.flow import drawing, flow_draws
from vla_tune.policies.precision import to_masters

kinds = pytest.mark.parametrize("kind", KINDS)
CPU = torch.device("cpu")


class Model:
    """Draws as lerobot's models do."""

    def sample_noise(self, shape, device):
        return torch.normal(0.0, 1.0, shape, device=device)

    def sample_time(self, count, device):
        return torch.distributions.Beta(1.5, 1.0).sample((count,)).to(device) * 0.999 + 0.001


def part(batch, rows):
    return {key: value[rows] for key, value in batch.items()}


def gradients(adapter, batch, draws):
    adapter.policy.zero_grad()
    loss = adapter.loss(batch, *draws)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in adapter.policy.named_parameters() if p.grad is not None}


def ready(made, kind, **settings):
    adapter = adapt(made(kind)[0].train())
    if kind == "smolvla":
        adapter.policy.config.freeze_vision_encoder = False
    adapter.freeze_as_configured()
    adapter.prepare_forward(**settings)
    return adapter


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 10**6), st.lists(st.integers(0, 11), min_size=1, max_size=12))
def test_a_samples_draws_do_not_depend_on_how_the_batch_is_split(seed, step, samples):
    before = torch.get_rng_state()
    noise, time = flow_draws(Model(), seed, step, range(12), (12, 5, 3))
    some = flow_draws(Model(), seed, step, samples, (12, 5, 3))
    assert torch.equal(some[0], noise[samples])
    assert torch.equal(some[1], time[samples])
    assert torch.equal(before, torch.get_rng_state())
    for other in ((seed + 1, step), (seed, step + 1)):
        assert not torch.equal(flow_draws(Model(), *other, range(12), (12, 5, 3))[0], noise)


def test_draws_of_the_flow_follow_lerobots_distributions():
    noise, time = flow_draws(Model(), 0, 0, range(20000), (20000, 2, 2))
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
    for quantile in (0.1, 0.5, 0.9):  # the distribution function of Beta(1.5, 1) is x ** 1.5
        assert abs(float(time.quantile(quantile)) - (0.001 + 0.999 * quantile ** (1 / 1.5))) < 0.01


@kinds
def test_the_policys_loss_is_of_the_draws_that_it_is_given(made, batch_of, kind):
    adapter = ready(made, kind)
    batch, draws = batch_of(3), adapter.flow_draws(0, 7, range(3), 3, CPU)
    with torch.no_grad():
        first, again = adapter.loss(batch, *draws), adapter.loss(batch, *draws)
        other = adapter.loss(batch, *adapter.flow_draws(0, 8, range(3), 3, CPU))
        torch.manual_seed(0)
        theirs = adapter.policy.forward(batch)[0]
        torch.manual_seed(0)
        assert torch.equal(adapter.loss(batch), theirs)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with pytest.raises(AssertionError, match="noise of shape"), drawing(adapter.policy.model, draws[0][:2], draws[1][:2]):
        adapter.policy(batch)


@kinds
def test_means_over_parts_of_a_batch_are_the_mean_over_the_batch(made, batch_of, kind):
    adapter, batch = ready(made, kind), batch_of(6)
    whole, expected = gradients(adapter, batch, adapter.flow_draws(0, 0, range(6), 6, CPU))
    parts = [range(1), range(1, 3), range(3, 6)]
    weights = [adapter.loss_weight(part(batch, list(rows))) for rows in parts]
    assert all(weight.dim() == 0 and weight.dtype == torch.float32 for weight in weights)
    total = torch.stack(weights).sum()
    assert torch.equal(total, adapter.loss_weight(batch))
    loss, summed = torch.zeros(()), {name: torch.zeros_like(g) for name, g in expected.items()}
    for rows, weight in zip(parts, weights, strict=True):
        value, found = gradients(adapter, part(batch, list(rows)), adapter.flow_draws(0, 0, rows, 6, CPU))
        loss += weight / total * value
        for name, gradient in found.items():
            summed[name] += weight / total * gradient
    assert torch.allclose(loss, whole, rtol=1e-5)
    for name, gradient in expected.items():
        assert torch.allclose(summed[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()) + 1e-9), name


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpointing_changes_no_gradient_and_keeps_less(made, batch_of, kind, dtype):
    batch, runs = batch_of(4), {}
    for checkpointing in (False, True):
        adapter = ready(made, kind, dtype=dtype, checkpointing=checkpointing)
        kept = {}

        def keep(tensor, kept=kept):
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        draws = adapter.flow_draws(0, 0, range(4), 4, CPU)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), adapter.taps() as taps:
            loss, found = gradients(adapter, batch, draws)
        runs[checkpointing] = loss, found, taps.states, sum(kept.values())
    (loss, expected, states, most), (again, found, taken, least) = runs[False], runs[True]
    assert torch.equal(loss, again)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    assert len(taken) == len(states) == len(adapter.layers())
    assert all(torch.equal(one, other) for one, other in zip(taken, states, strict=True))
    assert least < most


@kinds
def test_what_is_tapped_has_the_same_gradient_under_checkpointing(made, batch_of, kind):
    found = {}
    for checkpointing in (False, True):
        adapter = ready(made, kind, checkpointing=checkpointing)
        with adapter.taps() as taps:
            loss = adapter.loss(batch_of(2), *adapter.flow_draws(0, 0, range(2), 2, CPU))
        trained = [p for p in adapter.layers()[0].parameters() if p.requires_grad]
        penalty = torch.stack([state.square().mean() for state in taps.states]).sum()
        found[checkpointing] = [torch.autograd.grad(term, trained, retain_graph=True) for term in (loss, penalty)]
    for expected, gradient in zip(found[False], found[True], strict=True):
        assert all(torch.equal(one, other) for one, other in zip(expected, gradient, strict=True))


@kinds
def test_a_copy_of_a_prepared_policy_computes_with_its_own_weights(made, batch_of, kind):
    adapter = ready(made, kind, dtype=torch.bfloat16, checkpointing=True)
    batch, draws = batch_of(2), adapter.flow_draws(0, 0, range(2), 2, CPU)
    copied = adapt(copy.deepcopy(adapter.policy))
    with torch.no_grad():
        for parameter in copied.policy.parameters():
            parameter.mul_(1.1)
    (loss, found), (other, _) = gradients(adapter, batch, draws), gradients(copied, batch, draws)
    assert not torch.equal(loss, other)
    adapter.policy.load_state_dict(copied.policy.state_dict())
    assert torch.equal(adapter.loss(batch, *draws), other)
    assert all(gradient.dtype == torch.float32 for gradient in found.values())


@kinds
def test_bfloat16_computes_nearly_the_same_from_float32_weights(made, batch_of, kind):
    batch, runs = batch_of(4), {}
    for dtype in (torch.float32, torch.bfloat16):
        adapter = ready(made, kind, dtype=dtype)
        with adapter.taps() as taps:
            runs[dtype] = gradients(adapter, batch, adapter.flow_draws(0, 0, range(4), 4, CPU))
    assert {p.dtype for p in adapter.policy.parameters()} == {torch.float32}
    assert taps.states[0].dtype == (torch.bfloat16 if kind == "smolvla" else torch.float32)
    (loss, expected), (near, found) = runs[torch.float32], runs[torch.bfloat16]
    assert near != loss
    assert torch.isclose(near, loss, rtol=0.02)
    flat = [torch.cat([one[name].flatten() for name in expected]) for one in (expected, found)]
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.99
    adapter.prepare_forward()
    assert torch.equal(gradients(adapter, batch, adapter.flow_draws(0, 0, range(4), 4, CPU))[0], loss)


def test_smolvla_in_bfloat16_computes_as_lerobots_own_bfloat16_policy(made, batch_of):
    """From weights that bfloat16 has: with float32 copies of them ours gives nearly what lerobot gives with them themselves."""
    theirs = ready(made, "smolvla")
    theirs.inner.to(torch.bfloat16)
    ours = adapt(copy.deepcopy(theirs.policy))
    assert to_masters(ours.policy) == {"bfloat16": sum(p.numel() for p in theirs.inner.parameters())}
    ours.prepare_forward(torch.bfloat16)
    batch, draws = batch_of(4), ours.flow_draws(0, 0, range(4), 4, CPU)
    with torch.no_grad():
        assert torch.isclose(ours.loss(batch, *draws), theirs.loss(batch, *draws), rtol=2e-3)
    assert to_masters(ours.policy) == {}


def test_auto_is_what_lerobot_builds_the_policy_in(made):
    smolvla, pi = adapt(made("smolvla")[0]), adapt(made("pi0")[0])
    assert smolvla.compute_dtype("auto") == torch.float32  # what the VLM that is shipped says
    assert smolvla.compute_dtype("bfloat16") == torch.bfloat16
    smolvla.policy.config.load_vlm_weights = True
    assert smolvla.compute_dtype("auto") == torch.bfloat16
    assert smolvla.compute_dtype("float32") == torch.float32
    assert pi.compute_dtype("auto") == torch.float32
    pi.policy.config.dtype = "bfloat16"
    assert pi.compute_dtype("auto") == torch.bfloat16


def test_a_loaded_pi0_obeys_the_setting_of_gradient_checkpointing(made):
    adapter = adapt(made("pi0")[0])
    for on in (True, False):
        adapter.policy.config.gradient_checkpointing = on
        adapter.obey_settings()
        assert adapter.policy.model.gradient_checkpointing_enabled == on


@kinds
def test_experts_in_a_policy_train_the_same_under_checkpointing(made, batch_of, kind):
    found = {}
    for checkpointing in (False, True):
        adapter = ready(made, kind, checkpointing=checkpointing)
        torch.manual_seed(0)
        names = {id(module): name for name, module in adapter.policy.named_modules()}
        places = [names[id(module)] for layer in adapter.layers() for module in (layer.self_attn.q_proj, layer.mlp.up_proj)]
        pool = ExpertPool(adapter.policy, places, rank=2, scale=1.0)
        for task in (0, 1):
            pool.grow(task, 1, places)
            pool.thaw(task)
        with pool.routed(torch.tensor([0, 1, 0])):
            loss = adapter.loss(batch_of(3), *adapter.flow_draws(0, 0, range(3), 3, CPU))
        loss.backward()
        found[checkpointing] = {name: p.grad for name, p in adapter.policy.named_parameters() if p.grad is not None}
    assert found[False]
    assert found[False].keys() == found[True].keys()
    assert all(torch.equal(found[True][name], gradient) for name, gradient in found[False].items())
