"""A compiled policy computes the same loss and gradients, sees hooks that come later, and its copies have their own weights."""

import copy
from functools import partial

import pytest
import torch
from conftest import KINDS

from vla_tune.config import load_config
from vla_tune.errors import UserError
from vla_tune.policies import adapt
from vla_tune.policies.compiling import compiled


def gradients(policy, batch, draws):
    policy.zero_grad()
    loss = adapt(policy).loss(batch, *draws)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


def draws_of(policy, batch):
    return adapt(policy).flow_draws(0, 0, range(len(batch["action"])), len(batch["action"]), torch.device("cpu"))


def ready(made, kind):
    policy = made(kind)[0].train()
    adapt(policy).freeze_as_configured()
    return policy


@pytest.fixture
def traced(monkeypatch):
    """Graphs are made but not turned into machine code, which would take most of a minute."""
    torch._dynamo.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count))
    monkeypatch.setenv("CXX", "true")
    yield graphs
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_else_is_computed(made, batch_of, traced, kind):
    policy, batch = ready(made, kind), batch_of(2)
    draws, names = draws_of(policy, batch), list(policy.state_dict())
    loss, gradient = gradients(policy, batch, draws)
    count = compiled(policy)
    now, other = gradients(policy, batch, draws)
    assert list(policy.state_dict()) == names
    assert now == pytest.approx(loss, rel=1e-5)
    assert (other - gradient).norm() <= 1e-5 * gradient.norm()
    assert 0 < len(traced) < count
    made_once = len(traced)
    gradients(policy, batch, draws)
    assert len(traced) == made_once


def test_copies_and_later_hooks(made, batch_of, traced):
    policy, batch = ready(made, "smolvla"), batch_of(2)
    draws = draws_of(policy, batch)
    compiled(policy)
    loss, _ = gradients(policy, batch, draws)
    assert traced
    other = copy.deepcopy(policy)
    mlp = adapt(other).layers()[0].mlp
    with torch.no_grad():
        mlp.down_proj.weight.mul_(2)
    assert gradients(other, batch, draws)[0] != pytest.approx(loss, rel=1e-5)
    assert gradients(policy, batch, draws)[0] == loss
    seen = []
    adapt(policy).layers()[0].mlp.down_proj.register_forward_pre_hook(lambda *_: seen.append(1))
    assert gradients(policy, batch, draws)[0] == pytest.approx(loss, rel=1e-5)
    assert seen


def test_what_it_cannot_do_is_told(made, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="no no-such-compiler here"):
        compiled(made("smolvla")[0])
    for other in ("train.reference", "train.activation_checkpointing"):
        with pytest.raises(UserError, match=rf"train\.compile=true: cannot be combined with {other}"):
            load_config("demo", ["train.compile=true", f"{other}=true"])
