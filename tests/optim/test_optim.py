"""The optimizer in lerobot's own training program, in float32 and bfloat16, resumed, and on two processes."""

import copy
import logging
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from vla_tune.anchors.artifact import load_anchor
from vla_tune.config import load_config
from vla_tune.errors import UserError
from vla_tune.geometry.subspace import rank_of
from vla_tune.policies.loading import load_processors, new_policy, save_policy
from vla_tune.policies.smolvla import SmolVLAAdapter
from vla_tune.resources import demo_vlm
from vla_tune.stages import eval_rollout, eval_vqa
from vla_tune.vlm.loading import load_vlm
from vla_tune.vlm.parts import linears

SETTINGS = {
    "num_vlm_layers": 0,
    "train_expert_only": False,
    "freeze_vision_encoder": False,
    "chunk_size": 4,
    "n_action_steps": 2,
    "max_state_dim": 4,
    "max_action_dim": 4,
    "resize_imgs_with_padding": [64, 64],
}
ENERGY = 0.99
LR = 1e-3
OPTIMIZER = ["--optimizer.discover_packages_path=vla_tune.optim", "--optimizer.type=subspace_adamw"]


@pytest.fixture(scope="module")
def anchor(tmp_path_factory):
    from vla_tune.stages import anchor

    settings = [f"policy.settings.{key}={str(value).lower()}" for key, value in SETTINGS.items()]
    config = load_config("demo", ["anchor.samples=8", "anchor.batch_size=4", "anchor.frames=0", *settings])
    run = tmp_path_factory.mktemp("run")
    anchor.run(config, run)
    return run / "anchor"


@pytest.fixture(scope="module")
def policy():
    return fresh_policy()


def fresh_policy():
    from lerobot.configs import FeatureType, PolicyFeature

    inputs = {
        "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
        "observation.state": PolicyFeature(FeatureType.STATE, (4,)),
    }
    torch.manual_seed(0)
    return new_policy(SmolVLAAdapter, str(demo_vlm()), SETTINGS, (inputs, {"action": PolicyFeature(FeatureType.ACTION, (4,))}))


def optimizer_of(policy, anchor, **options):
    from vla_tune.optim.subspace_adamw import SubspaceAdamWConfig

    return SubspaceAdamWConfig(anchor=str(anchor), lr=LR, **options).build(policy.parameters())


@pytest.fixture(scope="module")
def lerobot_train(small_dataset, anchor):
    """Calls lerobot's program in this process, which saves importing it again."""
    from accelerate.state import AcceleratorState
    from lerobot.policies.smolvla.modeling_smolvla import VLAFlowMatching
    from lerobot.scripts import lerobot_train

    def run(*arguments):
        logging.disable(logging.NOTSET)  # our own programs, called in this process before, keep such lines from the user
        with pytest.MonkeyPatch.context() as patch:
            # A resumed lerobot-train draws other noise: its new data loader takes a seed from the generator that was restored.
            patch.setattr(VLAFlowMatching, "sample_noise", lambda self, shape, device: torch.linspace(-1, 1, 4).expand(shape))
            patch.setattr(VLAFlowMatching, "sample_time", lambda self, batch, device: torch.linspace(0.1, 0.9, batch))
            patch.setattr(sys, "argv", ["lerobot-train", OPTIMIZER[0], *arguments])
            lerobot_train.main()
        AcceleratorState._reset_state(reset_partial_state=True)

    def new(folder, *arguments, steps):
        data = ["--dataset.repo_id=local/small", f"--dataset.root={small_dataset}", f"--output_dir={folder}"]
        loop = [
            f"--steps={steps}",
            "--batch_size=4",
            "--num_workers=0",
            "--save_freq=2",
            "--policy.device=cpu",
            "--policy.push_to_hub=false",
        ]
        schedule = ["--use_policy_training_preset=false", "--scheduler.type=constant_with_warmup", "--scheduler.num_warmup_steps=0"]
        run(*data, *loop, *schedule, OPTIMIZER[1], f"--optimizer.anchor={anchor}", f"--optimizer.lr={LR}", *arguments)

    run.new = new
    return run


@pytest.fixture(scope="module")
def trained(lerobot_train, policy, tmp_path_factory):
    """Four steps in float32, with a checkpoint after two."""
    folder = tmp_path_factory.mktemp("float32")
    unit = {"mean": torch.zeros(4), "std": torch.ones(4)}
    processors = load_processors(policy, stats={"observation.state": unit, "action": unit})
    save_policy(policy, processors, folder / "start", str(demo_vlm()))
    lerobot_train.new(folder / "run", f"--policy.path={folder / 'start'}", steps=4)
    return folder / "run"


def weights(run, step):
    return load_file(run / "checkpoints" / f"{step:06}" / "pretrained_model" / "model.safetensors")


def vlm_weights(state):
    return {
        name.removeprefix(SmolVLAAdapter.vlm_prefix): tensor for name, tensor in state.items() if name.startswith(SmolVLAAdapter.vlm_prefix)
    }


def protected_part(change, inputs, outputs, sides):
    """What a change has in the directions, or in the pairs of directions, that carry the energy."""
    kept = inputs.basis.shape[1]
    if sides == "inputs":
        return change @ inputs.basis[:, : rank_of(inputs.values, ENERGY, inputs.energy)]
    products = np.outer(outputs.values[: outputs.basis.shape[1]].double(), inputs.values[:kept].double())
    order = np.sort(products.ravel())[::-1]
    least = order[np.searchsorted(np.cumsum(order), ENERGY * outputs.energy * inputs.energy)]
    return (outputs.basis.T @ change @ inputs.basis)[torch.from_numpy(products > least)]


def assert_protected(state, anchor, rounding, sides="both"):
    """Against the base VLM's file and the anchor's bases, with nothing of the optimizer's."""
    known = load_anchor(anchor).subspace
    vlm, _ = load_vlm(str(demo_vlm()))
    base, modules = vlm.state_dict(), linears(vlm)
    moved = 0
    for name, tensor in vlm_weights(state).items():
        start, now = base[name].to(tensor.dtype).float(), tensor.float()
        module = name.removesuffix(".weight")
        if module in modules and module in known.reads:
            change = (now - start).flatten(1)
            inside = protected_part(change, known.inputs[known.reads[module]], known.outputs[module], sides)
            assert inside.abs().max() <= rounding * start.abs().max() * change.shape[1] ** 0.5, name
            moved += bool(change.norm() > 10 * inside.norm())
        elif "embed_tokens" in name:
            seen = known.tokens > 0
            assert torch.equal(now[seen], start[seen])
            assert seen.any()
            assert not torch.equal(now[~seen], start[~seen])
        else:
            assert torch.equal(now, start), name
    assert moved > len(known.reads) / 2


def test_stock_lerobot_train_protects_the_vlm(trained, anchor, policy):
    state = weights(trained, 4)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert_protected(state, anchor, rounding=1e-7)
    start = policy.state_dict()
    expert = [name for name in state if ".lm_expert." in name and "layers" in name]
    assert sum(not torch.equal(state[name], start[name]) for name in expert) > len(expert) / 2


def test_what_lerobot_train_made_goes_through_both_evaluations_unchanged(trained, tmp_path):
    made = trained / "checkpoints" / "000004" / "pretrained_model"
    few = ["vqa.questions=40", "vqa.ranked=0", "rollout.episodes=2", "rollout.step_limit=4", "rollout.n_action_steps=2", "rollout.videos=0"]
    config = load_config("demo", [f"train.path={made}", *few])
    assert eval_vqa.run(config, tmp_path).metrics["base_accuracy"] > 0.8
    assert eval_rollout.run(config, tmp_path).metrics["episodes"] == 2


def test_the_input_side_alone(lerobot_train, anchor, tmp_path):
    vlm = ["--policy.type=smolvla", f"--policy.vlm_model_name={demo_vlm()}", "--policy.load_vlm_weights=true"]
    settings = [f"--policy.{key}={value}" for key, value in SETTINGS.items()]
    lerobot_train.new(tmp_path / "run", *vlm, *settings, "--optimizer.sides=inputs", steps=2)
    assert_protected(weights(tmp_path / "run", 2), anchor, rounding=2**-8, sides="inputs")


def test_resuming_changes_nothing(trained, lerobot_train, tmp_path):
    checkpoint = trained / "checkpoints" / "000002" / "pretrained_model" / "train_config.json"
    lerobot_train("--resume=true", f"--config_path={checkpoint}", f"--output_dir={tmp_path / 'run'}")
    resumed, straight = weights(tmp_path / "run", 4), weights(trained, 4)
    assert all(torch.equal(tensor, straight[name]) for name, tensor in resumed.items())
    assert any(not torch.equal(tensor, weights(trained, 2)[name]) for name, tensor in resumed.items())


def test_a_new_policy_trains_in_bfloat16(lerobot_train, anchor, tmp_path, capsys):
    """lerobot rounds the VLM; float32 masters of it are trained and protected, and come back when the training is resumed."""
    settings = [f"--policy.{key}={value}" for key, value in SETTINGS.items()]
    vlm = ["--policy.type=smolvla", f"--policy.vlm_model_name={demo_vlm()}", "--policy.load_vlm_weights=true"]
    lerobot_train.new(tmp_path / "run", *vlm, *settings, steps=4)
    assert capsys.readouterr().err.count("of the policy's weights that train are in bfloat16") == 1
    state = weights(tmp_path / "run", 4)
    assert {tensor.dtype for tensor in vlm_weights(state).values()} == {torch.bfloat16}
    assert_protected(state, anchor, rounding=2**-8)
    checkpoint = tmp_path / "run" / "checkpoints" / "000002" / "pretrained_model" / "train_config.json"
    lerobot_train("--resume=true", f"--config_path={checkpoint}", f"--output_dir={tmp_path / 'resumed'}")
    same_files(tmp_path / "resumed", tmp_path / "run", 4)
    kept = load_file(tmp_path / "run" / "checkpoints" / "000004" / "training_state" / "optimizer_state.safetensors")
    assert {tensor.dtype for name, tensor in kept.items()} == {torch.float32}
    assert any(name.endswith("/master") for name in kept)


def same_files(run, other, step):
    """Weights and the optimizer's state are equal to the bit."""
    for file in ("pretrained_model/model.safetensors", "training_state/optimizer_state.safetensors"):
        mine, theirs = (load_file(one / "checkpoints" / f"{step:06}" / file) for one in (run, other))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def test_autocast_by_accelerate(lerobot_train, trained, anchor, tmp_path, monkeypatch):
    """Weights stay float32 and are protected so, whatever the forward pass computes in."""
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    computed, forward = set(), SmolVLAPolicy.forward

    def noting(self, *inputs, **named):
        computed.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)
        return forward(self, *inputs, **named)

    monkeypatch.setattr(SmolVLAPolicy, "forward", noting)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    lerobot_train.new(tmp_path / "run", f"--policy.path={trained.parent / 'start'}", steps=2)
    assert computed == {torch.bfloat16}
    state = weights(tmp_path / "run", 2)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert_protected(state, anchor, rounding=1e-7)


def ddp_steps(rank, address, anchor, out):
    """Two steps of one of two processes, each on data of its own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    try:
        policy = fresh_policy()
        optimizer = optimizer_of(policy, anchor)
        ddp = torch.nn.parallel.DistributedDataParallel(policy, find_unused_parameters=True)
        unit = {"mean": torch.zeros(4), "std": torch.ones(4)}
        preprocess, _ = load_processors(policy, stats={"observation.state": unit, "action": unit})
        torch.manual_seed(rank)
        for _ in range(2):
            frames = {"observation.image": torch.rand(2, 3, 64, 64), "observation.state": torch.randn(2, 4), "action": torch.randn(2, 4, 4)}
            batch = preprocess(
                {**frames, "action_is_pad": torch.zeros(2, 4, dtype=torch.bool), "task": ["Open a drawer", "Press a button"]}
            )
            ddp(batch)[0].backward()
            optimizer.step()
            optimizer.zero_grad()
        torch.save(policy.state_dict(), out / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_processes_stay_equal(anchor, tmp_path):
    address = f"file://{tmp_path / 'store'}"
    other = torch.multiprocessing.get_context("spawn").Process(target=ddp_steps, args=(1, address, anchor, tmp_path), daemon=True)
    other.start()
    ddp_steps(0, address, anchor, tmp_path)
    other.join(120)
    assert other.exitcode == 0
    mine, theirs = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    assert_protected(mine, anchor, rounding=1e-7)


def test_the_anchor_must_be_of_this_vlm(policy, anchor):
    layer = "model.text_model.layers.0.self_attn.q_proj.weight"
    for name, change in ((layer, 1e-3), ("model.text_model.layers.0.input_layernorm.weight", 1e-3), ("lm_head.weight", 1e-3)):
        other = copy.deepcopy(policy)
        weight = dict(other.named_parameters())[SmolVLAAdapter.vlm_prefix + name]
        weight.data += change * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        with pytest.raises(UserError, match=rf"(?s)not what the anchor.*1 weights have other values, .*{name.rpartition('.')[0]}"):
            optimizer_of(other, anchor)


def test_what_cannot_be_protected_is_told(policy, anchor, tmp_path):
    with pytest.raises(UserError, match="vla-tune anchor"):
        optimizer_of(policy, tmp_path)
    with pytest.raises(UserError, match=r"anchor\.energy=0\.99995 or more"):
        optimizer_of(copy.deepcopy(policy), anchor, energy=0.9999)
    with pytest.raises(UserError, match="expected both or inputs"):
        optimizer_of(copy.deepcopy(policy), anchor, sides="outputs")
    frozen = copy.deepcopy(policy)
    frozen.model.vlm_with_expert.vlm.requires_grad_(requires_grad=False)
    with pytest.raises(UserError, match="train_expert_only=false"):
        optimizer_of(frozen, anchor)
    cut = copy.deepcopy(policy)
    del cut.model.vlm_with_expert.vlm.model.text_model.layers[-1]
    with pytest.raises(UserError, match=r"0 stretches .* cut at another layer"):
        optimizer_of(cut, anchor)
    replaced = optimizer_of(copy.deepcopy(policy), anchor)
    replaced.param_groups[0]["params"][0] = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(UserError, match="train with DDP"):
        replaced.step()


def test_fsdp_is_refused_before_anything_is_loaded(policy, tmp_path, monkeypatch):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    Accelerator(cpu=True)
    try:
        with monkeypatch.context() as patch:
            patch.setitem(PartialState._shared_state, "distributed_type", DistributedType.FSDP)
            with pytest.raises(UserError, match="FSDP splits; train with DDP"):
                optimizer_of(policy, tmp_path)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
