"""All stages on pi0 and pi0.5, of lerobot's real classes at small width, around a PaliGemma that knows its colours."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from vla_tune.config import load_config
from vla_tune.engine import checkpoint
from vla_tune.engine.signals import Interrupted
from vla_tune.policies.loading import load_policy
from vla_tune.stages import anchor, eval_rollout, eval_vqa, report, train
from vla_tune.vlm.loading import load_vlm
from vla_tune.vqa.dataset import vqa_questions

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from vlas import colour_questions, small_pi, teach


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    with small_pi(tmp_path_factory.mktemp("paligemma")) as folder:
        questions = colour_questions(tmp_path_factory.mktemp("questions"))
        teach(folder, vqa_questions(str(questions), "anchor"), steps=140)
        yield folder, questions


@pytest.fixture
def pipeline(vlm, small_dataset, tmp_path):
    def make(kind, *more):
        folder, questions = vlm
        size = {"chunk_size": 4, "n_action_steps": 2, "image_resolution": [56, 56], "tokenizer_max_length": 64}
        file = tmp_path / "small.yaml"
        values = {
            "policy": {"type": kind, "base_vlm": str(folder), "settings": {**size, "max_state_dim": 4, "max_action_dim": 4}},
            "data": {"repo_id": "local/small", "root": str(small_dataset)},
            "anchor": {"samples": 40, "batch_size": 20, "frames": 8, "gradients": 20},
            "train": {"steps": 4, "batch_size": 4, "lr": 3e-3, "warmup_steps": 1, "checkpoint_every": 2, "log_every": 1},
            "vqa": {"manifest": str(questions), "questions": 40, "max_new_tokens": 8, "ranked": 10},
            "rollout": {"tasks": ["touch-red", "touch-blue"], "episodes": 2, "step_limit": 6, "n_action_steps": 2, "videos": 0},
        }
        file.write_text(yaml.safe_dump(values))
        return load_config(str(file), list(more))

    return make


@pytest.mark.parametrize(("kind", "method"), [("pi0", "subspace"), ("pi05", "full")])
def test_all_stages(pipeline, tmp_path, kind, method):
    run = tmp_path / "run"
    config = pipeline(kind, f"method.name={method}")
    anchor.run(config, run)
    train.run(config, run)
    vqa = eval_vqa.run(config, run).metrics
    assert vqa["base_accuracy"] > 0.9
    if method == "subspace":
        assert vqa["accuracy"] > 0.9
    assert eval_rollout.run(config, run).metrics["episodes"] == 2
    report.run([run], run / "report")
    assert "touch-blue" in (run / "report" / "report.html").read_text()

    policy = load_policy(str(run / "train" / "policy"))
    inside = policy.model.paligemma_with_expert.paligemma.state_dict()
    exported = load_vlm(str(run / "train" / "vlm"))[0].state_dict()
    assert inside.keys() == exported.keys()
    assert all(torch.equal(tensor[: len(inside[name])], inside[name]) for name, tensor in exported.items())
    assert len(json.loads((run / "eval-vqa" / "report.json").read_text())["weights"]) == 8


@pytest.mark.parametrize("method", ["insulated", "lora"])
def test_train_equals_train_and_resume(pipeline, tmp_path, monkeypatch, method):
    config = pipeline("pi0", f"method.name={method}", "method.lora.rank=2")
    train.run(config, tmp_path / "whole")
    write = checkpoint.write

    def stop_after_two(run, snapshot, *what, **more):
        write(run, snapshot, *what, **more)
        if snapshot.step == 2:
            raise Interrupted(130)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", stop_after_two)
        with pytest.raises(Interrupted):
            train.run(config, tmp_path / "parts")
    train.run(config, tmp_path / "parts", resume=True)
    whole, parts = (load_file(tmp_path / name / "train" / "policy" / "model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())


@pytest.mark.parametrize(("kind", "method"), [("pi0", "igsp"), ("pi05", "moe_adapters")])
def test_a_stream_of_tasks(pipeline, tmp_path, kind, method):
    worlds = {"drawer": ("drawer-open-v3", "Open a drawer"), "button": ("button-press-v3", "Press a button")}
    tasks = ", ".join(f"{{name: {name}, tasks: [{world}], instructions: [{text}]}}" for name, (world, text) in worlds.items())
    small = [
        "stream.router_width=32",
        "stream.router_samples=24",
        "method.igsp.check_every=2",
        "method.igsp.least=2",
        "method.moe_adapters.width=4",
    ]
    config = pipeline(kind, f"method.name={method}", f"stream.tasks=[{tasks}]", "rollout.tasks=[]", *small)
    train.run(config, tmp_path)
    vqa = eval_vqa.run(config, tmp_path).metrics
    assert vqa["before"] > 0.9
    eval_rollout.run(config, tmp_path)
    matrix = json.loads((tmp_path / "eval-rollout" / "report.json").read_text())["stream"]["matrix"]
    assert [[cell is None for cell in row] for row in matrix] == [[False, True], [False, False]]
    assert load_policy(str(tmp_path / "train" / "policy"))
