"""The rivals on a real SmolVLA, each against its own definition worked out by other means."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rivals import ASKING, OPTIONS, assert_sum, backward, gradients, gradients_of, make, moved
from small import SETTINGS, features

from vla_tune.config import (
    AGEMConfig,
    CotrainingConfig,
    DistillationConfig,
    EWCConfig,
    FullConfig,
    InsulatedConfig,
    L2SPConfig,
    PenaltyConfig,
    WarmupConfig,
    WiSEFTConfig,
)
from vla_tune.engine.plan import show_groups
from vla_tune.errors import UserError
from vla_tune.geometry.gaussian import batch_moments
from vla_tune.methods.insulated import CLIP, discretised
from vla_tune.policies import adapt
from vla_tune.policies.loading import new_policy
from vla_tune.policies.smolvla import SmolVLAAdapter
from vla_tune.resources import demo_vlm
from vla_tune.vlm.batches import answer_loss, answered_inputs
from vla_tune.vlm.loading import load_vlm


@pytest.mark.parametrize("name", ["full", "warmup", "penalty", "distillation", "cotraining", "insulated", "agem", "l2sp", "ewc"])
def test_each_trains_and_says_what_its_loss_is_made_of(policy, stock, batches, anchor, memory, name):
    method = make(name, policy, anchor, memory, **({name: OPTIONS[name]} if name in OPTIONS else {}))
    assert (method.method.needs_anchor, method.method.needs_memory) == (name == "penalty", name in ASKING)
    optimizer = torch.optim.AdamW(method.parameter_groups(1e-3), lr=1e-3)
    for batch in batches[:2]:
        loss = method.backward(copy.deepcopy(batch))
        assert torch.isfinite(loss)
        assert all(isinstance(value, (int, float)) for value in method.diagnostics.values())
        assert method.diagnostics.get("task", loss.item()) == loss.item()
        method.step(optimizer)
    before = stock.state_dict()
    changed = [name for name, tensor in policy.state_dict().items() if not torch.equal(tensor, before[name])]
    assert any(".vlm." in name for name in changed)
    assert any("lm_expert" in name for name in changed)
    assert policy.state_dict().keys() == before.keys()


def test_the_vlm_has_a_learning_rate_of_its_own(policy, batches, capsys):
    plain = copy.deepcopy(policy)
    (only,) = make("full", plain).parameter_groups(0.1)
    assert [id(p) for p in only["params"]] == [id(p) for p in plain.get_optim_params() if p.requires_grad]
    assert only.keys() == {"params"}
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    method = make("full", policy, full=FullConfig(vlm_lr=0.25))
    optimizer = torch.optim.SGD(method.parameter_groups(0.1), lr=0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.025]
    assert len({id(p) for group in optimizer.param_groups for p in group["params"]}) == sum(p.requires_grad for p in policy.parameters())
    found = backward(method, batches[0])
    optimizer.step()
    for name, gradient in found.items():
        rate = 0.025 if ".vlm." in name else 0.1
        torch.testing.assert_close(dict(policy.named_parameters())[name], before[name] - rate * gradient)
    show_groups(method.method, 0.1)
    table = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if len(line.split()) > 1}
    assert "0.025" in table["vlm.layers.0"]
    assert "0.025" not in table["expert"]


def test_warmup_leaves_the_vlm_alone_and_then_is_full(policy, stock, batches):
    method = make("warmup", policy, warmup=WarmupConfig(steps=2))
    optimizer = torch.optim.AdamW(method.parameter_groups(1e-3), lr=1e-3, weight_decay=0.1)
    for step in range(2):
        found = backward(method, batches[step])
        assert not any(".vlm." in name for name in found)
        assert any("lm_expert" in name for name in found)
        method.step(optimizer)
    assert all(torch.equal(p, q) for p, q in zip(adapt(policy).vlm.parameters(), adapt(stock).vlm.parameters(), strict=True))
    plain = make("full", copy.deepcopy(policy))
    assert_sum(backward(method, batches[2]), backward(plain, batches[2]), 0, {})


@pytest.mark.parametrize("whiten", [True, False])
def test_the_penalty_is_a_term_of_the_loss(policy, batches, anchor, whiten):
    oracle = copy.deepcopy(policy)
    method = make("penalty", policy, anchor, penalty=PenaltyConfig(weight=0.5, whiten=whiten))
    found = backward(method, batches[0])
    task = backward(make("full", oracle), batches[0])
    torch.manual_seed(5)
    with adapt(oracle).taps() as taps:
        oracle.forward(copy.deepcopy(batches[0]))
    penalty = torch.zeros(())
    for states, mean, std in zip(taps.states, anchor.mean, anchor.std, strict=True):
        now, spread = batch_moments(states, taps.mask)
        scale = std if whiten else torch.ones_like(std)
        penalty = penalty + (((now - mean) / scale).square() + ((spread - std) / scale).square()).mean()
    assert method.diagnostics["penalty"] == pytest.approx(penalty.item(), rel=1e-5)
    assert_sum(found, task, 0.5, gradients_of(oracle, penalty))


def test_distillation_measures_how_far_the_features_have_gone(policy, stock, batches):
    method = make("distillation", policy)
    assert method.method._teacher.policy.model.vlm_with_expert.lm_expert is policy.model.vlm_with_expert.lm_expert
    backward(method, batches[0])
    assert method.diagnostics["distance"] < 1e-9  # the same pass, only without the expert behind it
    moved(policy)
    found = backward(method, batches[0])
    oracle = copy.deepcopy(policy)
    task = backward(make("full", oracle), batches[0])
    states = []
    for one in (oracle, stock):
        torch.manual_seed(5)
        with adapt(one).taps() as taps:
            one.forward(copy.deepcopy(batches[0]))
        states.append([block[taps.mask] for block in taps.states])
    distance = torch.stack([torch.nn.functional.mse_loss(now, then.detach()) for now, then in zip(*states, strict=True)]).mean()
    assert method.diagnostics["distance"] == pytest.approx(distance.item(), rel=1e-4)
    assert distance.item() > 1e-4
    assert_sum(found, task, DistillationConfig().weight, gradients_of(oracle, distance))
    teacher = method.method._teacher.vlm
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(p, q) for p, q in zip(teacher.parameters(), adapt(stock).vlm.parameters(), strict=True))


def test_cotraining_adds_the_answers_loss(policy, batches, memory):
    oracle = copy.deepcopy(policy)
    method = make("cotraining", policy, memory=memory, cotraining=CotrainingConfig(share=0.6, weight=0.5))
    method.method.steps = 4
    found = backward(method, batches[0])
    answers = answer_loss(adapt(oracle).vlm, memory.draw(4, 2))  # 0.6 of 3
    assert method.diagnostics["answers"] == pytest.approx(answers.item(), rel=1e-6)
    wanted = gradients_of(oracle, answers)
    assert wanted
    assert_sum(found, backward(make("full", oracle), batches[0]), 0.5, wanted)


def test_no_gradient_crosses_the_insulation(policy, batches, memory):
    oracle = copy.deepcopy(policy)
    method = make("insulated", policy, memory=memory, insulated=InsulatedConfig(bins=8))
    one, two = backward(method, batches[0], seed=5), backward(method, batches[0], seed=6)
    task = backward(make("full", oracle), batches[0], seed=5)
    for name, gradient in one.items():
        if ".vlm." in name:  # the noise of flow matching is nothing to the VLM
            torch.testing.assert_close(gradient, two[name], rtol=1e-5, atol=1e-8)
        else:
            torch.testing.assert_close(gradient, task[name], rtol=1e-5, atol=1e-8)
    assert any(not torch.allclose(gradient, two[name]) for name, gradient in one.items() if "lm_expert" in name)
    assert one.keys() == task.keys()
    head = method.method.extras["actions"]
    assert head.out_features == 4 * 4 * 8
    assert head.weight.grad.abs().sum() > 0


def test_the_action_head_reads_the_last_word_and_learns_the_bins(policy, batches, memory):
    """The target of every entry, and its loss, one by one; padded steps are left out."""
    method = make("insulated", policy, memory=memory, insulated=InsulatedConfig(bins=8))
    batch = copy.deepcopy(batches[0])
    batch["action_is_pad"][1, 2:] = True
    found = method.method.terms(batch)["actions"].value.item()
    with adapt(policy).taps() as taps:
        policy.forward(copy.deepcopy(batch))
    tokens = batch["observation.language.attention_mask"].sum(1)
    start = taps.mask.shape[1] - 1 - batch["observation.language.tokens"].shape[1]  # the state is the last token
    losses = []
    for row in range(3):
        state = policy.model.vlm_with_expert.vlm.model.text_model.norm(taps.states[-1][row, start + int(tokens[row]) - 1])
        logits = method.method.extras["actions"](state).reshape(4, 4, 8).log_softmax(-1)
        for step in range(4):
            if not batch["action_is_pad"][row, step]:
                losses += [-logits[step, d, int(discretised(batch["action"][row, step, d], 8))] for d in range(4)]
    assert len(losses) == 3 * 16 - 8
    assert found == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)


@given(st.lists(st.floats(-10, 10, width=32), min_size=1), st.integers(1, 64))
def test_bins_are_equal_and_cover_the_range(values, bins):
    numbers = discretised(torch.tensor(values, dtype=torch.float64), bins)
    assert 0 <= int(numbers.min()) <= int(numbers.max()) < bins
    width = 2 * CLIP / bins
    for value, number in zip(values, numbers.tolist(), strict=True):
        inside = min(max(value, -CLIP), CLIP)
        assert -CLIP + number * width - 1e-9 <= inside <= -CLIP + (number + 1) * width + 1e-9


def test_agem_projects_the_whole_vlm_at_once(policy, batches, memory):
    conflicts = 0
    for number, batch in enumerate(batches[:4]):
        one = copy.deepcopy(policy)
        method = make("agem", one, memory=memory, agem=AGEMConfig(samples=4, batch_size=3))
        method.method.steps = number
        found = backward(method, batch)
        oracle = copy.deepcopy(policy)
        task = backward(make("full", oracle), batch)
        answers = gradients_of(oracle, answer_loss(adapt(oracle).vlm, memory.draw(number, 3, 4)))
        names = [name for name in task if ".vlm." in name]
        g, r, mine = (torch.cat([part[name].double().flatten() for name in names]) for part in (task, answers, found))
        wanted = g - torch.clamp(g @ r, max=0) / (r @ r) * r
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5 * float(g.abs().max()))
        assert method.diagnostics["projected"] == int(g @ r < 0)
        assert method.diagnostics["energy_shed"] == pytest.approx(float((g - wanted).norm() ** 2 / g.norm() ** 2), abs=1e-6)
        conflicts += method.diagnostics["projected"]
        rest = [name for name in task if ".vlm." not in name]
        assert_sum({n: found[n] for n in rest}, {n: task[n] for n in rest}, 0, {})
    assert conflicts > 0, "no batch conflicted, so the projection was not tested"


def test_l2sp_pulls_to_where_it_started(policy, stock, batches):
    method = make("l2sp", policy, l2sp=L2SPConfig(weight=3.0))
    moved(policy)
    found = backward(method, batches[0])
    task = backward(make("full", copy.deepcopy(policy)), batches[0])
    start, now = dict(stock.named_parameters()), dict(policy.named_parameters())
    pull = {name: (now[name] - start[name]).detach() for name in task if ".vlm." in name}
    assert method.diagnostics["distance"] == pytest.approx(sum(float(p.square().sum()) for p in pull.values()) / 2, rel=1e-4)
    assert_sum(found, task, 3.0, pull)


def test_ewc_pulls_by_the_squared_gradients_of_single_answers(policy, stock, batches, memory):
    method = make("ewc", policy, memory=memory, ewc=EWCConfig(weight=7.0, samples=3))
    assert not gradients(policy)
    oracle = copy.deepcopy(policy)
    fisher: dict = {}
    for row in range(3):
        one = gradients_of(oracle, answer_loss(adapt(oracle).vlm, answered_inputs(memory.processor, memory.questions, [row])))
        for name, gradient in one.items():
            fisher[name] = fisher.get(name, 0) + gradient.square() / 3
    moved(policy)
    found = backward(method, batches[0])
    task = backward(make("full", copy.deepcopy(policy)), batches[0])
    start, now = dict(stock.named_parameters()), dict(policy.named_parameters())
    pull = {name: importance * (now[name] - start[name]).detach() for name, importance in fisher.items()}
    assert max(float(p.abs().max()) for p in pull.values()) > 0
    assert_sum(found, task, 7.0, pull)


@pytest.mark.parametrize("name", ASKING)
def test_a_cut_vlm_cannot_answer(memory, name):
    cut = new_policy(SmolVLAAdapter, str(demo_vlm()), {**SETTINGS, "num_vlm_layers": 2}, features())
    with pytest.raises(UserError, match=r"cut the VLM to 2 of its 6 layers; set policy\.settings\.num_vlm_layers=0"):
        make(name, cut, memory=memory, **({name: OPTIONS[name]} if name in OPTIONS else {}))


@pytest.mark.parametrize("name", ["ewc", "agem"])
def test_more_questions_than_there_are_are_refused(policy, memory, name):
    with pytest.raises(UserError, match=rf"method\.{name}\.samples=256: vqa\.manifest has 6 questions"):
        make(name, policy, memory=memory)
    with pytest.raises(UserError, match="needs VQA questions"):
        make(name, policy)


def test_what_a_vlm_less_loss_reaches_is_the_stock_forward(policy, memory):
    """The answers' loss inside the policy is that of the VLM on its own."""
    alone, _ = load_vlm(str(demo_vlm()))
    inputs = memory.draw(0, 4)
    with torch.no_grad():
        assert torch.equal(answer_loss(adapt(policy).vlm, inputs), answer_loss(alone, inputs))


def test_a_run_that_trains_nothing_needs_a_finished_one(policy):
    with pytest.raises(UserError, match=r"set method\.wise_ft\.path"):
        make("wise_ft", policy)
    with pytest.raises(UserError, match=r"the train artifact /nowhere/train is missing"):
        make("wise_ft", policy, wise_ft=WiSEFTConfig(path="/nowhere/train"))
