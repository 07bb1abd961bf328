"""What the tests of the rivals share: making one, the gradients of one step, and sums of gradients compared."""

from __future__ import annotations

import copy

import torch

from vla_tune.config import AGEMConfig, EWCConfig, MethodConfig, WarmupConfig
from vla_tune.library import make_method

ASKING = ("cotraining", "insulated", "agem", "ewc")
OPTIONS = {"ewc": EWCConfig(samples=3, weight=10.0), "agem": AGEMConfig(samples=4, batch_size=3), "warmup": WarmupConfig(steps=1)}


def make(name, policy, anchor=None, memory=None, **options):
    return make_method(name, policy, anchor=anchor, memory=memory, settings=MethodConfig(name=name, **options))


def gradients(policy, part=""):
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None and part in name}


def backward(method, batch, seed=5):
    """The gradients of one step with the noise of a seed."""
    method.policy.zero_grad()
    torch.manual_seed(seed)
    method.backward(copy.deepcopy(batch))
    return gradients(method.policy)


def gradients_of(policy, loss):
    policy.zero_grad()
    loss.backward()
    return gradients(policy)


def assert_sum(found, first, weight, second):
    assert found.keys() == first.keys() | second.keys()
    for name, gradient in found.items():
        wanted = first.get(name, 0) + weight * second.get(name, 0)
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6 * float(wanted.abs().max()) + 1e-9)


def moved(policy):
    """A policy some way from its start."""
    torch.manual_seed(8)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * parameter.std(correction=0) * torch.randn_like(parameter))
    return policy
