"""Streams of a robot's tasks and of questions end to end, on the demo's VLM."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from after_tasks import assert_equal, states
from PIL import Image
from safetensors.torch import load_file

from vla_tune.artifacts.typed import read_json
from vla_tune.config import load_config
from vla_tune.engine import after
from vla_tune.errors import UserError
from vla_tune.experts.tasks import NONE
from vla_tune.learners.answers import pictures_of
from vla_tune.learners.deployed import Deployed
from vla_tune.learners.robot import Robot
from vla_tune.resources import demo_vlm
from vla_tune.stages import anchor, eval_rollout, eval_vqa, train
from vla_tune.stages.opening import open_method
from vla_tune.vlm.loading import load_vlm, save_vlm
from vla_tune.vlm.prompts import prompts_of

DRAWER = "{name: drawer, tasks: [drawer-open-v3], instructions: [Open a drawer]}"
ROBOT = [
    "data.manifest=null",
    "data.repo_id=local/small",
    "policy.settings.chunk_size=4",
    "policy.settings.n_action_steps=2",
    "train.steps=4",
    "train.batch_size=4",
    "train.warmup_steps=1",
    "train.checkpoint_every=3",
    "method.igsp.check_every=2",
    "method.igsp.least=2",
    "vqa.questions=8",
    "vqa.bootstrap=50",
    "rollout.episodes=2",
    "rollout.step_limit=4",
    "rollout.n_action_steps=2",
    "stream.router_width=32",
    "stream.router_samples=24",
    f"stream.tasks=[{DRAWER}, {{name: button, tasks: [button-press-v3], instructions: [Press a button]}}]",
]


QUESTION = "What colour is the circle?"


@pytest.fixture
def robot(small_dataset):
    """A function from further overrides to the configuration of a robot's stream."""
    return lambda *more: load_config("stream-metaworld", [*ROBOT, f"data.root={small_dataset}", *more])


@pytest.mark.parametrize("name", ["igsp", "moe_adapters", "full"])
def test_a_robot_learns_a_stream_and_keeps_its_vqa_ability_measured(robot, copied, tmp_path, name):
    config = robot(f"method.name={name}", "rollout.videos=3")
    copied(robot(f"method.name={name}"))
    eval_vqa.run(config, tmp_path)
    eval_rollout.run(config, tmp_path)
    assert [file.name.split("-seed")[0] for file in sorted((tmp_path / "eval-rollout" / "videos").iterdir())] == [
        "button-button-press-v3",
        "drawer-drawer-open-v3",
        "drawer-drawer-open-v3",
    ]
    vqa = read_json(tmp_path / "eval-vqa" / "report.json")
    assert vqa["n"] == 8
    assert vqa["retention"]["value"] == pytest.approx(vqa["accuracy"]["value"] / vqa["base_accuracy"]["value"])
    matrix = read_json(tmp_path / "eval-rollout" / "report.json")["stream"]["matrix"]
    assert [[cell is None for cell in row] for row in matrix] == [[False, True], [False, False]]


@pytest.mark.parametrize("name", ["igsp", "moe_adapters", "full"])
def test_a_policy_that_has_cut_its_vlm_answers_with_the_base_vlms_upper_layers(robot, tmp_path, name):
    """As lerobot/smolvla_base does: 16 of 32 layers. What is put on the lower ones, or trained in them, is met by questions too."""
    config = robot("policy.settings.num_vlm_layers=2", f"method.name={name}", "train.lr=0.01")
    train.run(config, tmp_path)
    report = eval_vqa.run(config, tmp_path).metrics
    assert report["before"] > 0.3  # the policy starts from the base VLM's own layers, so nothing is lost by the cut
    method = open_method(config)
    whole = method.learner.vlm.model.text_model
    assert len(whole.layers) == 6
    assert all(one is other for one, other in zip(whole.layers, method.learner.adapter.layers(), strict=False))
    question = torch.arange(5, 12)[None]

    def said(task):
        with torch.no_grad(), method.routed(task):
            return whole(input_ids=question).last_hidden_state

    before = said(1)
    after.restore(tmp_path / "train", 1, method)
    assert not torch.allclose(said(1), before, atol=1e-4)
    if name != "full":
        assert torch.equal(said(None), before)


def test_a_robots_train_equals_train_and_resume(robot, trained, tmp_path, stopped_at):
    config = robot()
    with stopped_at(Robot, 6):
        train.run(config, tmp_path / "parts")
    train.run(config, tmp_path / "parts", resume=True)
    assert_equal(states(trained(config)), states(tmp_path / "parts"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["stream.reference=shapes"], "what belongs to no task of a robot is asked by vqa.manifest"),
        (["rollout.n_action_steps=9"], "n_action_steps=9 is more than the policy's chunk_size=4"),
        (["rollout.first_seed=1000000"], "seeds up to 1000001; those from 1000000 on are demonstrations'"),
        (["rollout.step_limit=501"], "ends every episode of drawer-open-v3 after 500 steps"),
    ],
)
def test_bad_input_of_a_robots_stream_is_told(robot, trained, more, message):
    run = trained(robot())
    with pytest.raises(UserError, match=message):
        eval_rollout.run(robot(*more), run)
    assert {folder.name for folder in run.iterdir()} == {"train"}


def test_lerobots_switches_that_do_not_hold_in_a_stream_are_told(robot, tmp_path, capsys):
    frozen = "policy.settings.train_expert_only=true"
    train.run(robot(frozen), tmp_path, plan=True)
    assert "policy.settings.train_expert_only does not keep igsp out of the VLM; stream.parts says" in capsys.readouterr().err
    train.run(robot(frozen, "method.name=full"), tmp_path, plan=True)
    assert "train_expert_only" not in capsys.readouterr().err


def test_a_robots_earlier_tasks_go_by_the_scales_that_they_were_learnt_with(robot, small_dataset, tmp_path):
    """New demonstrations change a dataset's statistics."""
    root, grown = tmp_path / "data", {"observation.state": {"mean": 7.0}, "action": {"std": 3.0}}
    shutil.copytree(small_dataset, root)
    first = robot(f"data.root={root}", f"stream.tasks=[{DRAWER}]")
    train.run(first, tmp_path)
    stats = read_json(root / "meta" / "stats.json")
    for key, values in grown.items():
        stats[key] |= {name: [value] * 4 for name, value in values.items()}
    (root / "meta" / "stats.json").write_text(json.dumps(stats))
    both = robot(f"data.root={root}")
    began = [file.read_bytes() for file in sorted((tmp_path / "train" / "policy").glob("*processor*.safetensors"))]
    assert len(began) == 2
    train.run(both, tmp_path, resume=True)
    assert [file.read_bytes() for file in sorted((tmp_path / "train" / "policy").glob("*processor*.safetensors"))] == began


def test_replayed_frames_are_of_all_of_a_tasks_demonstrations(robot):
    learner = open_method(robot("train.batch_size=2")).learner
    frames = learner.frames_of(learner._episodes[0])
    most = len(frames) - 1
    drawn = torch.cat([learner.remembered(0, most, 64, number)["index"] for number in range(4)])
    assert {int(drawn.min()), int(drawn.max())} <= set(frames)
    assert int(drawn.max()) >= frames[-3]


def test_the_saved_policy_is_a_stock_one(robot, trained):
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    run = trained(robot())
    policy = SmolVLAPolicy.from_pretrained(run / "train" / "policy", strict=True)
    left = load_file(run / "train" / "after" / "1.safetensors")
    fresh = {name.removeprefix("fresh:").replace(".base.", "."): tensor for name, tensor in left.items() if name.startswith("fresh:")}
    state = policy.state_dict()
    assert fresh
    assert all(torch.equal(state[name], tensor) for name, tensor in fresh.items())


@pytest.mark.parametrize("name", ["lora", "shared"])
def test_what_goes_on_training_is_in_the_saved_model(robot, tmp_path, name):
    """There is no task to choose, so `train/policy` has it all."""
    config = robot(f"method.name={name}", "train.lr=0.01")
    train.run(config, tmp_path)
    method = open_method(config)
    after.restore(tmp_path / "train", 1, method)
    layer, expert = next((name, layer) for name, layer in method.pool.layers.items() if name not in method.young)
    saved = load_file(tmp_path / "train" / "policy" / "model.safetensors")[f"{layer}.weight"]
    assert not torch.equal(saved, expert.weight)
    with method.as_stock():
        assert torch.equal(saved, method.learner.model.get_submodule(layer).weight)
    each = [method.shares(task).get(layer, torch.ones(2)) for task in (0, 1)]  # a single adapter counts in full
    torch.testing.assert_close(saved, expert.merged(0, ((each[0] + each[1]) / 2)[1:]))


def test_padding_is_not_what_experts_are_chosen_by(robot):
    told = []
    for length in (24, 40):
        method = open_method(robot("policy.settings.pad_language_to=max_length", f"policy.settings.tokenizer_max_length={length}"))
        method.begin(0)
        torch.manual_seed(1)
        for layer in method.pool.layers.values():
            if (mixture := layer.mixture(0)) is not None:
                torch.nn.init.normal_(mixture.weight)
        told.append(method.shares(0))
    assert len(told[0]) > 10
    for name, shares in told[0].items():
        torch.testing.assert_close(shares, told[1][name], rtol=1e-3, atol=1e-4, msg=name)


def test_a_policy_acts_in_ones_own_program_as_the_documents_have_it(robot, trained):
    config = robot()
    method = open_method(config)
    after.restore(trained(config) / "train", 1, method)
    learner, deployed, taken = method.learner, Deployed(method), []
    before, unscale = learner.start.processors
    frame = learner.start.dataset[0]
    seen = {key: frame[key][None] for key in ("observation.image", "observation.state")}
    batch = before({**seen, "task": [frame["task"]]})
    with torch.no_grad(), deployed.around(learner.batch_features, taken)(batch):
        actions = unscale(learner.start.policy.predict_action_chunk(batch))
    assert actions.shape == (1, 4, 4)
    assert taken[0].tolist() == [0]


def test_only_the_first_task_trains_a_new_action_expert(robot, trained):
    run = trained(robot())
    first, last = (load_file(run / "train" / "after" / f"{task}.safetensors") for task in (0, 1))
    assert all(torch.equal(tensor, last[name]) for name, tensor in first.items() if name.startswith("fresh:"))
    records = read_json(run / "train" / "stream.json")["records"]
    assert records[0]["fresh"] > 0
    assert records[0]["trainable"]["first"] > records[0]["fresh"]


def test_experts_that_protect_do_not_see_the_leading_vqa_inputs(robot, tmp_path):
    from vla_tune.anchors.artifact import load_anchor

    config = robot("method.igsp.protect=0.9", "anchor.samples=8", "anchor.batch_size=4", "anchor.frames=0", "anchor.gradients=0")
    anchor.run(config, tmp_path)
    train.run(config, tmp_path)
    method = open_method(config, load_anchor(tmp_path / "anchor"))
    after.restore(tmp_path / "train", 1, method)
    guards, layers = method.guards, method.pool.layers
    assert set(guards) == {name for name in layers if name.startswith(method.learner.vlm_prefix)}  # lerobot's frozen blocks too
    kept = [(guard, down) for name, guard in guards.items() for down in layers[name].down.values()]
    assert kept
    for guard, down in kept:
        assert torch.allclose(guard(down), down, atol=1e-5)
    eval_vqa.run(replace(config, anchor=replace(config.anchor, path="nowhere")), tmp_path)  # what is learnt needs no anchor any more


def test_an_anchor_that_cannot_protect_is_told(robot, tmp_path):
    quick = ("anchor.samples=8", "anchor.batch_size=4", "anchor.frames=0", "anchor.gradients=0")
    anchor.run(robot(*quick, "anchor.energy=0.5"), tmp_path)
    with pytest.raises(UserError, match=r"holds directions up to an energy of 0\.5"):
        train.run(robot("method.igsp.protect=0.9"), tmp_path)
    vlm, processor = load_vlm(str(demo_vlm()))
    with torch.no_grad():
        next(vlm.parameters()).mul_(2)
    save_vlm(vlm, processor, tmp_path / "other")
    with pytest.raises(UserError, match="was taken from a VLM with other weights"):
        train.run(robot("method.igsp.protect=0.4", f"policy.base_vlm={tmp_path / 'other'}"), tmp_path)
    anchor.run(robot(*quick, "policy.settings.num_vlm_layers=4"), tmp_path / "short")
    with pytest.raises(UserError, match=r"knows nothing of 14 layers that get experts, model\.text_model\.layers\.4"):
        train.run(robot("method.igsp.protect=0.4"), tmp_path / "short")
    assert not (tmp_path / "train").exists()


def test_a_task_without_demonstrations_is_told(robot, tmp_path):
    tasks = "stream.tasks=[{name: fly, tasks: [reach-v3]}]"
    with pytest.raises(UserError, match=r"'fly' has no demonstrations .* set its instructions to some of the dataset's: 'Open a drawer'"):
        train.run(robot(tasks), tmp_path)


def asking(name):
    return load_config(
        "stream-drawn",
        [
            f"method.name={name}",
            "policy.base_vlm=demo",
            "stream.tasks=[{name: three, manifest: shapes-three}, {name: noise, manifest: shapes-noise}]",
            "stream.reference=shapes",
            "stream.router_width=32",
            "stream.router_samples=24",
            "train.steps=3",
            "train.batch_size=4",
            "method.igsp.check_every=1",
            "vqa.questions=8",
            "vqa.bootstrap=50",
        ],
    )


@pytest.mark.parametrize("name", ["igsp", "lora_per_task", "replay"])
def test_a_vlm_learns_a_stream_of_questions(tmp_path, name):
    config = asking(name)
    train.run(config, tmp_path)
    eval_vqa.run(config, tmp_path)
    report = read_json(tmp_path / "eval-vqa" / "report.json")["stream"]
    assert len(report["matrix"]) == 2
    assert report["reference"]["n"] == 8


@pytest.mark.parametrize("tasks", [[0, NONE], [NONE, 0], [1, 0]])
def test_a_picture_that_is_cut_into_several_goes_with_its_question(tasks):
    """SmolVLM's published processors cut pictures by their shape: the vision tower's rows are not as many for every question."""
    method = open_method(asking("igsp"))
    for task in range(2):
        method.begin(task)
    for layer in method.pool.layers.values():
        for up in layer.up.values():
            torch.nn.init.normal_(up, std=0.1)
    learner = method.learner
    learner.processor.image_processor.do_image_splitting = True
    learner.processor.image_processor.size = {"longest_edge": 192}
    pictures = [Image.new("RGB", (192, 60), "red"), Image.new("RGB", (64, 64), "blue")]
    prompts = prompts_of(learner.processor)

    def said(chosen):
        inputs = prompts.inputs([pictures[one] for one in chosen], [QUESTION] * len(chosen))
        number = torch.tensor([tasks[one] for one in chosen])
        with torch.no_grad(), method.routed(number, pictures_of(inputs)):
            return pictures_of(inputs).tolist(), learner.model(**inputs).logits[:, -1]

    many, whole = said([0, 1])
    assert many == [4, 10]
    assert many == [said([one])[0][0] for one in (0, 1)]
    assert torch.allclose(whole, torch.cat([said([one])[1] for one in (0, 1)]), atol=1e-3)
    plain = torch.cat([learner.model(**prompts.inputs([picture], [QUESTION])).logits[:, -1] for picture in pictures])
    assert [torch.allclose(whole[one], plain[one], atol=1e-3) for one in (0, 1)] == [task == NONE for task in tasks]


def test_moe_adapters_do_not_learn_questions():
    with pytest.raises(UserError, match="it routes a sample by its first token, and an answer is written token by token"):
        open_method(asking("moe_adapters"))
