"""The subspace method on real anchors: what it protects stays, what it does not moves."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vla_tune.anchors.artifact import load_anchor
from vla_tune.anchors.protection import Protection
from vla_tune.errors import UserError
from vla_tune.learners.demonstrations import Demonstrations
from vla_tune.library import make_method
from vla_tune.resources import demo_vlm
from vla_tune.stages import anchor as anchor_stage
from vla_tune.stages import train
from vla_tune.vlm.batches import answered_inputs
from vla_tune.vlm.loading import load_vlm
from vla_tune.vqa.dataset import vqa_questions

SAMPLES = 2  # few enough tokens to leave most directions of every layer free


@pytest.fixture(scope="module")
def setup(tmp_path_factory, small_dataset):
    from vla_tune.config import load_config

    def config(*more):
        small = ["data.manifest=null", "data.repo_id=local/small", f"data.root={small_dataset}", "train.batch_size=4", "train.steps=4"]
        rest = ["policy.settings.chunk_size=4", "policy.settings.n_action_steps=2", "train.warmup_steps=1", "train.checkpoint_every=2"]
        anchor = [f"anchor.samples={SAMPLES}", "anchor.energy=1", "anchor.frames=0"]
        method = ["method.name=subspace", "method.subspace.sides=inputs", "method.subspace.energy=1"]
        return load_config("demo", [*small, *rest, *anchor, *method, *more])

    run = tmp_path_factory.mktemp("run")
    anchor_stage.run(config(), run)
    return config, run


def answers(vlm, *, choice=False):
    """Logits on the anchor's own questions, in the Hugging Face forward; `choice`: where the answers are said, centred, of their tokens."""
    batch = answered_inputs(load_vlm(str(demo_vlm()))[1], vqa_questions("shapes", "anchor", SAMPLES), list(range(SAMPLES)))
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = vlm(**batch).logits
    if not choice:
        return logits[batch["attention_mask"].bool()]
    said = labels[:, 1:] >= 0
    chosen = logits[:, :-1][said][:, labels[labels >= 0].unique()]
    return chosen - chosen.mean(-1, keepdim=True)


def trained(config, run, name, steps=4, *, choice=False):
    """How far a method's steps move the policy's logits and its VLM, and the logits' size."""
    learner = Demonstrations(config)
    method = make_method(name, learner.model, anchor=load_anchor(run / "anchor"), settings=config.method)
    optimizer, _, _ = learner.optimizer(method.parameter_groups(1e-3))
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    vlm = learner.adapter.vlm
    before, weights = answers(vlm, choice=choice), {n: p.detach().clone() for n, p in vlm.named_parameters()}
    batch = next(learner.batches(0, 0))
    for _ in range(steps):
        method.backward(dict(batch))
        method.step(optimizer)
    method.finish(run)
    moved = {n: float((p.detach() - weights[n]).norm() / weights[n].norm()) for n, p in vlm.named_parameters()}
    return (answers(vlm, choice=choice) - before).abs().max().item(), moved, before.abs().max().item()


@pytest.mark.parametrize("project", ["both", "update"])
def test_answers_on_the_anchor_stay_while_the_weights_move(setup, project):
    config, run = setup
    change, moved, scale = trained(config(f"method.subspace.project={project}"), run, "subspace")
    assert change < 1e-2 * scale
    assert moved["model.text_model.layers.2.mlp.down_proj.weight"] > 1e-4
    assert moved["model.vision_model.encoder.layers.1.self_attn.q_proj.weight"] > 1e-4
    free, _, _ = trained(config(), run, "full")
    assert free > 20 * change


def test_plain_gradient_steps_on_projected_gradients_keep_answers_too(setup):
    """Without Adam's division the gradient alone is enough."""
    made, run = setup
    config = made("method.subspace.project=gradient")
    learner = Demonstrations(config)
    method = make_method("subspace", learner.model, anchor=load_anchor(run / "anchor"), settings=config.method)
    vlm = learner.adapter.vlm
    before = answers(vlm)
    batch = next(learner.batches(0, 0))
    optimizer = torch.optim.SGD([p for p in learner.model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        method.backward(dict(batch))
        method.step(optimizer)
    assert (answers(vlm) - before).abs().max() < 1e-2 * before.abs().max()


def test_norms_biases_and_rows_that_were_read_are_held(setup):
    config, run = setup
    _, moved, _ = trained(config(), run, "subspace")
    held = [name for name in moved if name.endswith(("norm.weight", "layernorm.weight", ".bias", "position_embedding.weight"))]
    assert len(held) > 20
    assert not any(moved[name] for name in held)


def test_embeddings_that_are_also_the_head_are_held_whole(setup):
    _, run = setup
    vlm = load_vlm(str(demo_vlm()))[0]
    vlm.requires_grad_(requires_grad=False)
    table = vlm.get_input_embeddings().weight.requires_grad_()
    vlm.lm_head.weight = table
    Protection(load_anchor(run / "anchor"), "inputs", 0.9, vlm, dict(vlm.named_parameters()))
    assert not table.requires_grad


def test_more_energy_than_the_anchor_holds_is_refused(setup, tmp_path):
    config, _ = setup
    anchor_stage.run(config("anchor.energy=0.9"), tmp_path)
    with pytest.raises(UserError, match=r"up to an energy of 0\.9 .* anchor\.energy=0\.99 or more"):
        train.run(config("method.subspace.energy=0.99"), tmp_path)
    with pytest.raises(UserError, match=r"up to an energy of 0\.81 .* anchor\.energy=0\.948684 or more"):
        train.run(config("method.subspace.sides=both", "method.subspace.energy=0.9"), tmp_path)


def test_directions_that_the_rank_cut_off_are_told(setup, tmp_path, capsys):
    config, _ = setup
    cut = config("anchor.rank=3", "method.subspace.sides=both", "method.subspace.energy=0.9", "train.steps=1")
    anchor_stage.run(cut, tmp_path)
    train.run(cut, tmp_path)
    assert "anchor.rank" in capsys.readouterr().err


def test_pairs_that_matter_stay_and_answers_move_far_less_than_freely(setup):
    made, run = setup
    config = made("method.subspace.sides=both", "method.subspace.energy=0.999")
    change, moved, _ = trained(config, run, "subspace", choice=True)
    free, _, _ = trained(made(), run, "full", choice=True)
    assert free > 5 * change
    assert moved["model.text_model.layers.2.mlp.down_proj.weight"] > 1e-4


def test_an_anchor_without_gradients_serves_the_input_side_alone(setup, tmp_path):
    config, _ = setup
    anchor_stage.run(config("anchor.gradients=0"), tmp_path)
    with pytest.raises(UserError, match="sides=inputs"):
        train.run(config("method.subspace.sides=both"), tmp_path)


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU: values read one by one, and sizes that depend on values."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("sides", ["inputs", "both"])
def test_the_projection_waits_for_nothing_on_the_device(setup, monkeypatch, sides):
    config, run = setup
    vlm = Demonstrations(config()).adapter.vlm
    protection = Protection(load_anchor(run / "anchor"), sides, 0.9, vlm, dict(vlm.named_parameters()))
    for parameter in vlm.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None

    def wait(*_):
        raise AssertionError("waits")

    for name in ("tolist", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, wait)
    with Waits() as waits:
        energies = protection.project_gradients()
        protection.project_changes()
    assert energies
    assert waits.count == 0
