"""Every method on a real SmolVLA: what trains, what the gradients become, and that a stock policy is left behind."""

from __future__ import annotations

import contextlib
import copy
import dataclasses

import pytest
import torch
from small import SETTINGS, features

from vla_tune.config import LoRAConfig, MethodConfig
from vla_tune.errors import UserError
from vla_tune.geometry.gaussian import batch_moments, wasserstein2
from vla_tune.library import make_method
from vla_tune.policies import adapt
from vla_tune.policies.loading import new_policy
from vla_tune.policies.smolvla import SmolVLAAdapter
from vla_tune.resources import demo_vlm


def optimizer_of(policy):
    return policy.config.get_optimizer_preset().build(policy.get_optim_params())


def test_full_is_lerobots_own_update(policy, batches):
    from accelerate import Accelerator
    from lerobot.scripts.lerobot_train import update_policy
    from lerobot.utils.logging_utils import AverageMeter, MetricsTracker

    theirs, ours = copy.deepcopy(policy), policy
    accelerator = Accelerator(cpu=True)
    names = ("loss", "grad_norm", "lr", "update_s", "gpu_mem_gb")
    tracker = MetricsTracker(3, 10, 1, {n: AverageMeter(n) for n in names})
    their_optimizer, our_optimizer = optimizer_of(theirs), optimizer_of(ours)
    method = make_method("full", ours)

    torch.manual_seed(7)
    for batch in batches:
        update_policy(tracker, theirs, copy.deepcopy(batch), their_optimizer, 10.0, accelerator)
    torch.manual_seed(7)
    for batch in batches:
        ours.train()
        method.backward(copy.deepcopy(batch))
        accelerator.clip_grad_norm_(ours.parameters(), 10.0)
        method.step(our_optimizer)

    for (name, a), (_, b) in zip(theirs.named_parameters(), ours.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    their_state, our_state = their_optimizer.state_dict()["state"], our_optimizer.state_dict()["state"]
    assert their_state.keys() == our_state.keys()
    assert their_state
    for key, entry in their_state.items():
        assert all(torch.equal(value, our_state[key][part]) for part, value in entry.items())


def train_briefly(method, policy, batches, steps=2, lr=1e-2):
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=lr)
    for batch in batches[:steps]:
        method.backward(copy.deepcopy(batch))
        method.step(optimizer)


def test_frozen_moves_the_expert_alone(policy, stock, batches):
    train_briefly(make_method("frozen", policy), policy, batches)
    before = stock.state_dict()
    moved = {name for name, tensor in policy.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert not any(".vlm." in name for name in moved)
    assert any("lm_expert" in name for name in moved)


def test_lora_trains_adapters_and_leaves_a_stock_policy(policy, stock, batches, tmp_path):
    method = make_method("lora", policy, settings=MethodConfig(name="lora", lora=LoRAConfig(rank=4, alpha=8)))
    trained = {name for name, p in policy.named_parameters() if p.requires_grad and ".vlm." in name}
    assert trained
    assert all("lora_" in name for name in trained)
    last = len(adapt(policy).layers()) - 1
    assert not any(f"text_model.layers.{last}." in name for name in trained)  # lerobot gives the last block no gradient
    train_briefly(method, policy, batches)
    policy.eval()
    torch.manual_seed(3)
    unmerged = policy.forward(copy.deepcopy(batches[0]))[0]
    method.finish(tmp_path)
    torch.manual_seed(3)
    merged = policy.forward(copy.deepcopy(batches[0]))[0]
    torch.testing.assert_close(merged, unmerged, rtol=1e-4, atol=1e-5)
    assert policy.state_dict().keys() == stock.state_dict().keys()
    assert {f.name for f in (tmp_path / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_aegis_equals_two_forward_passes_and_the_textbook_projection(policy, batches, anchor):
    oracle = copy.deepcopy(policy)
    method = make_method("aegis", policy, anchor=anchor)
    policy.eval()
    oracle.eval()
    torch.manual_seed(5)
    method.backward(copy.deepcopy(batches[0]))

    torch.manual_seed(5)
    oracle.forward(copy.deepcopy(batches[0]))[0].backward()
    task = {name: p.grad.clone() for name, p in oracle.named_parameters() if p.grad is not None}
    oracle.zero_grad()
    torch.manual_seed(5)
    with adapt(oracle).taps() as taps:
        oracle.forward(copy.deepcopy(batches[0]))
    moments = [batch_moments(states, taps.mask) for states in taps.states]
    sum(wasserstein2(*m, anchor.mean[i], anchor.std[i]) for i, m in enumerate(moments)).backward()
    pull = {name: p.grad.clone() for name, p in oracle.named_parameters() if p.grad is not None}

    layers = len(adapt(policy).layers())
    mine = dict(policy.named_parameters())
    projected = 0
    for layer in range(layers):
        names = [n for n in task if f"vlm.model.text_model.layers.{layer}." in n]
        if not names:
            assert method.diagnostics["cosine"][layer] is None
            continue
        t = torch.cat([task[n].double().flatten() for n in names])
        a = torch.cat([pull[n].double().flatten() for n in names])
        wanted = t - torch.clamp(t @ a, max=0) / (a @ a) * a
        got = torch.cat([mine[n].grad.double().flatten() for n in names])
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4 * float(t.abs().max()))
        assert method.diagnostics["projected"][layer] == int(t @ a < 0)
        assert method.diagnostics["cosine"][layer] == pytest.approx(float(t @ a / t.norm() / a.norm()), abs=1e-4)
        projected += int(t @ a < 0)
    assert projected, "no layer conflicted, so the projection was not tested"
    assert method.diagnostics["cosine"][layers - 1] is None  # frozen by lerobot
    elsewhere = [n for n in task if ".text_model.layers." not in n]
    assert any("lm_expert" in n for n in elsewhere)
    assert any("embed_tokens" in n for n in elsewhere)
    for name in elsewhere:  # embeddings, connector and expert follow the task alone
        torch.testing.assert_close(mine[name].grad, task[name], rtol=1e-5, atol=1e-7)


def test_aegis_with_the_batchs_own_statistics_is_plain_fine_tuning(policy, batches, anchor):
    plain = copy.deepcopy(policy)
    with adapt(policy).taps() as taps, torch.no_grad():
        policy.forward(copy.deepcopy(batches[0]))
    own = [batch_moments(states, taps.mask) for states in taps.states]
    domain = dataclasses.replace(anchor, mean=[m for m, _ in own], std=[s for _, s in own])
    method = make_method("aegis", policy, anchor=domain)
    torch.manual_seed(5)
    method.backward(copy.deepcopy(batches[0]))
    torch.manual_seed(5)
    make_method("full", plain).backward(copy.deepcopy(batches[0]))
    assert max(method.diagnostics["drift"]) < 1e-6
    for (name, a), (_, b) in zip(policy.named_parameters(), plain.named_parameters(), strict=True):
        if a.grad is not None:
            assert torch.isfinite(a.grad).all(), name
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


def test_the_anchor_must_fit(policy, anchor):
    with pytest.raises(UserError, match="needs an anchor"):
        make_method("aegis", policy)
    short = dataclasses.replace(anchor, mean=anchor.mean[:-1])
    with pytest.raises(UserError, match="another backbone"):
        make_method("aegis", policy, anchor=short)
    other = dataclasses.replace(anchor, backbone="sha256:0")
    with pytest.raises(UserError, match="other weights"):
        make_method("aegis", policy, anchor=other)


def test_a_frozen_vlm_is_told(batches):
    policy = new_policy(SmolVLAAdapter, str(demo_vlm()), {**SETTINGS, "train_expert_only": True}, features())
    for name in ("full", "lora"):
        with pytest.raises(UserError, match="train_expert_only"):
            make_method(name, policy)


def test_a_freeze_rule_that_matches_nothing_is_an_error(policy):
    method = make_method("frozen", policy)
    with pytest.raises(UserError, match=r"'vlm\.visoin' matches no parameter"):
        method.method.freeze("vlm.visoin")
    with pytest.raises(UserError, match="did you mean 'aegis'"):
        make_method("aegiss", policy)


def test_taps_are_the_stock_models_hidden_states(policy):
    """In the Hugging Face path, what the norms see is what transformers itself calls hidden states."""
    from vla_tune.vlm.parts import Taps, residual_taps

    vlm = adapt(policy).vlm.eval()
    ids = torch.randint(10, 200, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), residual_taps(vlm, Taps()) as taps:
        states = vlm(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    assert len(taps.states) == len(adapt(policy).layers())
    for mine, theirs in zip(taps.states[:-1], states[1:-1], strict=True):
        assert torch.equal(mine, theirs)
    norm = vlm.model.text_model.norm
    assert torch.equal(norm(taps.states[-1]), states[-1])
    with contextlib.suppress(StopIteration):
        assert next(iter(vlm.model.text_model.layers)).input_layernorm._forward_pre_hooks == {}
