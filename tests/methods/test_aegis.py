"""Every option of AEGIS on a real SmolVLA, against what it says it computes."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from vla_tune.config import AegisConfig, MethodConfig
from vla_tune.errors import UserError
from vla_tune.geometry import gaussian
from vla_tune.geometry.gaussian import batch_moments, sample_tokens, wasserstein2
from vla_tune.library import make_method
from vla_tune.policies import adapt


def make(policy, anchor, /, **options):
    return make_method("aegis", policy, anchor=anchor, settings=MethodConfig(name="aegis", aegis=AegisConfig(**options)))


def backward(method, batch):
    torch.manual_seed(5)  # lerobot draws noise and time from the global generator
    return method.backward(copy.deepcopy(batch))


def penalties(policy, batch, anchor):
    """An independent forward: the penalty of each block, and what the taps saw."""
    torch.manual_seed(5)
    with adapt(policy).taps() as taps:
        policy.forward(copy.deepcopy(batch))
    return [wasserstein2(*batch_moments(states, taps.mask), anchor.mean[i], anchor.std[i]) for i, states in enumerate(taps.states)], taps


def task_gradients(policy, batch):
    torch.manual_seed(5)
    policy.forward(copy.deepcopy(batch))[0].backward()
    gradients = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    return gradients


def blocks(policy):
    """The trained parameters of each block."""
    groups = adapt(policy).groups()
    layers = {i: {n: p for n, p in groups[f"vlm.layers.{i}"].items() if p.requires_grad} for i in range(len(adapt(policy).layers()))}
    return {i: ps for i, ps in layers.items() if ps}


def flat(tensors):
    return torch.cat([t.detach().double().flatten() for t in tensors])


def textbook(t, a):
    return t - torch.clamp(t @ a, max=0) / (a @ a) * a


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("group", ["layer", "tensor", "model"])
def test_each_group_and_reach_against_independent_forwards(policy, batches, anchor, group, local):
    batch = batches[0]
    anchor = dataclasses.replace(anchor, mean=[10 * mean for mean in anchor.mean])  # where every group has conflicts
    oracle = copy.deepcopy(policy)
    task = task_gradients(oracle, batch)
    trained = {name for ps in blocks(oracle).values() for name in ps}
    pull = {}
    if local:  # of each block's penalty, a forward and a full backward of its own, and only its own parameters' part
        for layer, ps in blocks(oracle).items():
            oracle.zero_grad()
            penalties(oracle, batch, anchor)[0][layer].backward()
            pull.update({name: p.grad.clone() for name, p in ps.items()})
    else:
        sum(penalties(oracle, batch, anchor)[0]).backward()
        pull = {name: p.grad.clone() for name, p in oracle.named_parameters() if name in trained}

    method = make(policy, anchor, group=group, local=local)
    backward(method, batch)
    mine = dict(policy.named_parameters())
    layers = {layer: list(ps) for layer, ps in blocks(policy).items()}
    spans = {
        "layer": [*layers.values()],
        "tensor": [[n] for ns in layers.values() for n in ns],
        "model": [[n for ns in layers.values() for n in ns]],
    }
    conflicts, shed = 0, dict.fromkeys(layers, 0.0)
    for names in spans[group]:
        t, a, got = (flat([x[n] for n in names]) for x in (task, pull, {n: mine[n].grad for n in names}))
        torch.testing.assert_close(got, textbook(t, a), rtol=1e-4, atol=1e-4 * float(t.abs().max()))
        conflicts += int(t @ a < 0)
        for layer, own in layers.items():
            if names[0] in own:
                shed[layer] += float((t - got).square().sum() / flat([task[n] for n in own]).square().sum())
    assert conflicts
    if group == "layer" and local:
        assert conflicts < len(layers), "every block conflicted, so leaving one alone was not tested"
    if group != "model":
        assert [method.diagnostics["energy_shed"][layer] for layer in layers] == pytest.approx(list(shed.values()), rel=1e-3, abs=1e-6)
    else:
        assert len({method.diagnostics["cosine"][layer] for layer in layers}) == 1
    elsewhere = set(task) - trained
    assert elsewhere
    for name in elsewhere:
        torch.testing.assert_close(mine[name].grad, task[name], rtol=1e-5, atol=1e-7)


def test_a_blocks_own_gradient_stops_at_its_input(policy, batches, anchor):
    """Why `local` needs no detached input, and costs no chain."""
    penalty, taps = penalties(policy, batches[0], anchor)
    reached = []
    for layer, states in enumerate(taps.states):
        states.register_hook(lambda _, layer=layer: reached.append(layer))
    penalty[3].backward(inputs=list(blocks(policy)[3].values()))
    assert reached == [3]


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_penaltys_scale_cancels(policy, batches, anchor, monkeypatch, scale):
    other = copy.deepcopy(policy)
    backward(make(policy, anchor), batches[0])
    monkeypatch.setattr(gaussian, "wasserstein2", lambda *moments, whiten: scale * wasserstein2(*moments, whiten=whiten))
    backward(make(other, anchor), batches[0])
    for (name, a), (_, b) in zip(policy.named_parameters(), other.named_parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4 * float(a.grad.abs().max()), msg=name)


def test_a_penalty_without_a_gradient_changes_nothing(policy, batches, anchor, monkeypatch):
    plain = copy.deepcopy(policy)
    monkeypatch.setattr(gaussian, "wasserstein2", lambda *moments, whiten: 0.0 * wasserstein2(*moments, whiten=whiten))
    method = make(policy, anchor)
    backward(method, batches[0])
    backward(make_method("full", plain), batches[0])
    assert not any(method.diagnostics["projected"][:-1])
    for (name, a), (_, b) in zip(policy.named_parameters(), plain.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad), name


def test_padding_has_no_part(policy, batches, anchor):
    other = copy.deepcopy(policy)
    batch = copy.deepcopy(batches[0])
    tokens, mask = batch["observation.language.tokens"], batch["observation.language.attention_mask"].bool()
    assert not mask.all()
    tokens[~mask] = 77
    one, two = make(policy, anchor), make(other, anchor)
    backward(one, batches[0])
    backward(two, batch)
    assert one.diagnostics == two.diagnostics
    for (name, a), (_, b) in zip(policy.named_parameters(), other.named_parameters(), strict=True):
        assert a.grad is None or torch.equal(a.grad, b.grad), name


def test_image_and_text_make_up_all(policy, batches, anchor):
    _, taps = penalties(policy, batches[0], anchor)
    image, text = taps.counted("image"), taps.counted("text")
    assert torch.equal(image | text, taps.counted("all"))
    assert not (image & text).any()
    tokens = batches[0]["observation.language.tokens"]
    wanted = batches[0]["observation.language.attention_mask"].bool() & (tokens != adapt(policy)._bos)
    assert text.sum(1).tolist() == wanted.sum(1).tolist()
    assert image.sum(1).unique().numel() == 1


@pytest.mark.parametrize(
    "options",
    [{"tokens": "image"}, {"tokens": "text"}, {"whiten": True}, {"path": "stock"}, {"samples": 20}, {"anchor": "robot"}],
    ids="".join,
)
def test_what_the_penalty_is_of(policy, batches, anchor, options):
    """The drift of a step by hand, with the same statistics under three names."""
    far = [mean + 1 for mean in anchor.mean]
    named = dataclasses.replace(anchor, stock_mean=far, robot_mean=far, robot_std=anchor.std)
    method = make(policy, named, **options)
    method.method.steps = 3
    backward(method, batches[0])
    _, taps = penalties(policy, batches[0], anchor)
    mask = taps.counted(options.get("tokens", "all"))
    if "samples" in options:
        mask = sample_tokens(mask, 20, seed=3)
        assert mask.sum() == 20
    means = far if {"path", "anchor"} & options.keys() else anchor.mean
    for layer, states in enumerate(taps.states):
        x = states[mask].detach().double()
        shift, spread = x.mean(0) - means[layer], (x.var(0, correction=0) + 1e-6).sqrt() - anchor.std[layer]
        if "whiten" in options:
            shift, spread = shift / anchor.std[layer], spread / anchor.std[layer]
        wanted = float((shift.square() + spread.square()).mean())
        assert method.diagnostics["drift"][layer] == pytest.approx(wanted, rel=1e-4)


def test_at_the_starting_models_own_statistics_nothing_is_held_back(policy, batches, anchor):
    plain = copy.deepcopy(policy)
    with torch.no_grad():
        _, taps = penalties(policy, batches[0], anchor)
    own = [batch_moments(states, taps.mask) for states in taps.states]
    robot = dataclasses.replace(anchor, robot_mean=[mean for mean, _ in own], robot_std=[std for _, std in own])
    method = make(policy, robot, anchor="robot")
    backward(method, batches[0])
    backward(make_method("full", plain), batches[0])
    assert max(method.diagnostics["drift"]) < 1e-9
    for (name, a), (_, b) in zip(policy.named_parameters(), plain.named_parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_statistics_that_are_not_there_are_told(policy, anchor):
    with pytest.raises(UserError, match=r"make it with anchor\.frames above 0"):
        make(policy, anchor, anchor="robot")
    with pytest.raises(UserError, match=r"path=stock: .* leave it at policy"):
        make(policy, anchor, anchor="robot", path="stock")


def optimizers(kind, *policies):
    return [kind([p for p in policy.parameters() if p.requires_grad]) for policy in policies]


def test_a_projected_update_never_raises_the_penalty_and_leaves_the_rest(policy, batches, anchor):
    """Weight decay and momentum of AdamW are part of the update; where projecting the gradient lets them, here none passes."""
    plain, gradient = copy.deepcopy(policy), copy.deepcopy(policy)
    methods = [make(policy, anchor, project="update"), make_method("full", plain), make(gradient, anchor)]
    steps = optimizers(lambda ps: torch.optim.AdamW(ps, lr=1e-3, weight_decay=0.1), policy, plain, gradient)
    raised, shown = {"update": [], "full": [], "gradient": []}, None
    for number, batch in enumerate(batches[:2]):
        if number:  # the same weights and moments for all, so that one step is compared
            for other, optimizer in zip((plain, gradient), steps[1:], strict=True):
                other.load_state_dict(policy.state_dict())
                optimizer.load_state_dict(copy.deepcopy(steps[0].state_dict()))
        policy.zero_grad()
        sum(penalties(policy, batch, anchor)[0]).backward()
        pull = {layer: flat([p.grad for p in ps.values()]) for layer, ps in blocks(policy).items()}
        for name, method, optimizer in zip(raised, methods, steps, strict=True):
            optimizer.zero_grad()
            before = {layer: flat(ps.values()) for layer, ps in blocks(method.policy).items()}
            backward(method, batch)
            method.step(optimizer)
            after = {layer: flat(ps.values()) for layer, ps in blocks(method.policy).items()}
            raised[name] = [cosine(after[layer] - before[layer], pull[layer]) for layer in before]
        shown = methods[0].diagnostics
    assert max(raised["update"]) < 1e-4
    assert max(raised["full"]) > 1e-2
    assert max(raised["gradient"]) > 1e-2
    layers = list(blocks(policy))
    assert [shown["cosine"][layer] for layer in layers] == pytest.approx([-value for value in raised["full"]], abs=1e-3)
    assert [shown["projected"][layer] for layer in layers] == [int(value > 0) for value in raised["full"]]
    projected = {name for layer in layers if shown["projected"][layer] for name in blocks(policy)[layer]}
    moved = dict(plain.named_parameters())
    assert projected
    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, moved[name]) == (name not in projected), name


def test_under_plain_gradient_descent_the_two_projections_agree(policy, batches, anchor):
    other = copy.deepcopy(policy)
    methods = [make(policy, anchor, project="gradient"), make(other, anchor, project="update")]
    for method, optimizer in zip(methods, optimizers(lambda ps: torch.optim.SGD(ps, lr=0.1), policy, other), strict=True):
        backward(method, batches[0])
        method.step(optimizer)
    for key in ("cosine", "energy_shed"):
        assert methods[0].diagnostics[key][:-1] == pytest.approx(methods[1].diagnostics[key][:-1], abs=1e-4)
    for (name, a), (_, b) in zip(policy.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("project", ["gradient", "update"])
def test_a_kept_gradient_serves_between_refreshments_and_survives_a_checkpoint(policy, batches, anchor, project):
    def train(method, optimizer, first):
        for number in range(first, 5):
            torch.manual_seed(number)
            method.backward(copy.deepcopy(batches[number]))
            if method.method._pull and method.method._pull is not kept[-1]:
                kept.append(method.method._pull)
                fresh_at.append(number)
            method.step(optimizer)
            rows.append(method.diagnostics)
            if number == 3 and not first:  # neither a refreshment nor the step before one
                saved.update(copy.deepcopy({"p": policy.state_dict(), "o": optimizer.state_dict(), "m": method.method.state_dict()}))

    def fresh(policy):
        return make(policy, anchor, every=3, project=project, samples=50), *optimizers(lambda ps: torch.optim.AdamW(ps, lr=1e-3), policy)

    resumed, saved, rows, kept, fresh_at = copy.deepcopy(policy), {}, [], [None], []
    train(*fresh(policy), first=0)
    assert fresh_at == [0, 3]
    assert len({row["cosine"][0] for row in rows}) == 5
    method, optimizer = fresh(resumed)
    resumed.load_state_dict(saved["p"])
    optimizer.load_state_dict(saved["o"])
    method.method.load_state_dict(saved["m"])
    method.method.steps = 4
    train(method, optimizer, first=4)
    assert rows[5] == rows[4]
    for (name, a), (_, b) in zip(policy.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(a, b), name
