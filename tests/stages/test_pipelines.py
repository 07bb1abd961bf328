"""Every shipped pipeline to its end, its models, demonstrations and questions replaced by small ones of the same class."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_tune.config import load_config
from vla_tune.policies import adapter_class
from vla_tune.policies.loading import load_processors, new_policy, save_policy
from vla_tune.resources import available, demo_vlm
from vla_tune.stages import anchor, evaluate, train
from vla_tune.stages.downloads import fetches
from vla_tune.vqa.dataset import vqa_questions

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from vlas import colour_questions, small_pi, teach

CAMERAS = {"smolvla": ["camera1", "camera2", "camera3"], "pi05": ["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"]}
"""Of `lerobot/smolvla_base` and `lerobot/pi05_base`."""
DATASETS = {
    "smolvla-libero": ({"observation.images.image": 64, "observation.images.image2": 64}, 8, 7),
    "pi05-libero": ({"observation.images.image": 64, "observation.images.image2": 64}, 8, 7),
    "smolvla-mt50": ({"observation.image": 96}, 4, 4),
    "own": ({"observation.images.front": 64}, 6, 6),
}
"""Pictures with their edges, width of the state, width of the action."""
STREAMS = ("mtil", "mtil-order-2", "stream-drawn", "stream-images", "stream-libero", "stream-metaworld")
"""Those of one task after another: the first two need the Hub's pictures and are planned only; tests/streams runs the rest but one."""


def start(kind, base, folder):
    """A policy of the published one's features, as it would be downloaded."""
    from lerobot.configs import FeatureType, PolicyFeature

    pictures = {f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, 256, 256)) for name in CAMERAS[kind]}
    widths = {"observation.state": 6, "action": 6} if kind == "smolvla" else {"observation.state": 32, "action": 32}
    inputs = {**pictures, "observation.state": PolicyFeature(FeatureType.STATE, (widths["observation.state"],))}
    size = {"chunk_size": 16, "n_action_steps": 16, "max_state_dim": 32, "max_action_dim": 32}
    if kind == "smolvla":
        size |= {"num_vlm_layers": 2, "resize_imgs_with_padding": [64, 64], "tokenizer_max_length": 24}
    else:
        size |= {"image_resolution": [56, 56], "tokenizer_max_length": 64}
    torch.manual_seed(0)
    policy = new_policy(adapter_class(kind), base, size, (inputs, {"action": PolicyFeature(FeatureType.ACTION, (widths["action"],))}))
    names = ("mean", "std", "min", "max", "q01", "q99")
    unit = {key: {name: torch.full((width,), float(name in ("std", "max", "q99"))) for name in names} for key, width in widths.items()}
    save_policy(policy, load_processors(policy, stats=unit), folder, base)
    return folder


def recorded(folder, pictures, state, action):
    """Three short episodes of noise in the published data set's names and widths."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    cameras = {
        name: {"dtype": "image", "shape": (edge, edge, 3), "names": ["height", "width", "channels"]} for name, edge in pictures.items()
    }
    vectors = {
        key: {"dtype": "float32", "shape": (width,), "names": None} for key, width in (("observation.state", state), ("action", action))
    }
    dataset = LeRobotDataset.create(
        "local/like", fps=10, features={**cameras, **vectors}, root=folder, use_videos=False, video_backend="pyav"
    )
    rng = np.random.default_rng(0)
    for episode in range(3):
        for _ in range(8):
            drawn = {name: rng.integers(0, 256, (edge, edge, 3), dtype=np.uint8) for name, edge in pictures.items()}
            numbers = {key: rng.uniform(-1, 1, feature["shape"]).astype(np.float32) for key, feature in vectors.items()}
            dataset.add_frame({**drawn, **numbers, "task": f"Do {episode % 2}"})
        dataset.save_episode()
    dataset.finalize()
    return folder


@pytest.fixture(scope="module")
def smolvla(tmp_path_factory):
    return start("smolvla", str(demo_vlm()), tmp_path_factory.mktemp("smolvla")), str(demo_vlm()), "shapes"


@pytest.fixture(scope="module")
def pi05(tmp_path_factory):
    with small_pi(tmp_path_factory.mktemp("paligemma")) as vlm:
        questions = colour_questions(tmp_path_factory.mktemp("questions"))
        teach(vlm, vqa_questions(str(questions), "anchor"), steps=140)
        yield start("pi05", str(vlm), tmp_path_factory.mktemp("pi05")), str(vlm), str(questions)


WORLDS = {
    "smolvla-libero": ["rollout.tasks=[libero_object/0]", "rollout.processes=false"],
    "pi05-libero": ["rollout.tasks=[libero_goal/0]", "rollout.processes=false"],
    "smolvla-mt50": ["rollout.tasks=[reach-v3, push-v3]"],
    "own": ["data.rename={observation.images.front: observation.images.camera1}", "data.heldout=0.4"],
}


@pytest.mark.parametrize("name", DATASETS)
def test_to_the_end(name, request, tmp_path):
    if name.endswith("libero"):
        request.getfixturevalue("libero_assets")
    policy, vlm, questions = request.getfixturevalue("pi05" if name.startswith("pi05") else "smolvla")
    root = recorded(tmp_path / "data", *DATASETS[name])
    models = [f"policy.path={policy}", f"policy.base_vlm={vlm}", "device=cpu"]
    data = ["data.repo_id=local/like", f"data.root={root}", f"vqa.manifest={questions}"]
    few = ["anchor.samples=8", "anchor.batch_size=4", "anchor.frames=4", "anchor.gradients=4", "train.steps=2", "train.batch_size=2"]
    little = [
        "vqa.questions=12",
        "vqa.ranked=4",
        "rollout.episodes=2",
        "rollout.step_limit=3",
        "rollout.n_action_steps=2",
        "rollout.videos=1",
    ]
    small = [*models, *data, *few, "train.log_every=1", *little, *WORLDS[name]]
    config = load_config(name, small if name != "own" else [one for one in small if not one.startswith("rollout.step_limit")])
    run = tmp_path / "run"
    anchor.run(config, run)
    train.run(config, run)
    evaluate.run(config, run)
    report = json.loads((run / "eval-rollout" / "report.json").read_text())
    if name == "own":
        assert len(report["offline"]["by_joint"]) == 6
    else:
        assert report["episodes"] == 2
    if name == "smolvla-mt50":
        assert set(report["by_group"]) == {"easy", "hard"}
    saved = json.loads((run / "train" / "policy" / "config.json").read_text())
    first = f"observation.images.{CAMERAS[saved['type']][0]}"
    assert saved["input_features"][first]["shape"] == [3, *[next(iter(DATASETS[name][0].values()))] * 2]
    assert (run / "report" / "report.html").is_file()


def test_a_stream_of_libero_suites(smolvla, libero_assets, tmp_path):
    """Tasks of two suites, by a policy that has cut its VLM."""
    policy, vlm, questions = smolvla
    root = recorded(tmp_path / "data", *DATASETS["smolvla-libero"])
    tasks = "{name: object, tasks: [libero_object/0], instructions: [Do 0]}, {name: goal, tasks: [libero_goal/1], instructions: [Do 1]}"
    small = [
        "train.steps=2",
        "train.batch_size=2",
        "train.log_every=1",
        "train.warmup_steps=1",
        "method.igsp.check_every=1",
        "method.igsp.rank=2",
    ]
    little = ["vqa.questions=8", "rollout.episodes=1", "rollout.step_limit=3", "rollout.n_action_steps=2", "rollout.processes=false"]
    data = ["data.repo_id=local/like", f"data.root={root}", f"vqa.manifest={questions}", f"stream.tasks=[{tasks}]"]
    router = ["stream.router_width=32", "stream.router_samples=8"]
    models = [f"policy.path={policy}", f"policy.base_vlm={vlm}", "device=cpu"]
    config = load_config("stream-libero", [*models, *data, *small, *little, *router])
    run = tmp_path / "run"
    train.run(config, run)
    evaluate.run(config, run)
    matrix = json.loads((run / "eval-rollout" / "report.json").read_text())["stream"]["matrix"]
    assert [[cell is None for cell in row] for row in matrix] == [[False, True], [False, False]]
    assert json.loads((run / "eval-vqa" / "report.json").read_text())["n"] == 8
    assert (run / "report" / "report.html").is_file()


def test_every_pipeline_is_run_somewhere():
    assert {*DATASETS, *STREAMS, "demo"} == set(available("pipelines"))


@pytest.mark.parametrize("name", ["mtil", "mtil-order-2"])
def test_a_plan_of_a_stream_names_its_data_sets(name, tmp_path, capsys):
    assert train.run(load_config(name, ["device=cpu"]), tmp_path, plan=True) is None
    told = capsys.readouterr().out
    assert told.count("dataset ") == 11
    assert "model openai/clip-vit-base-patch16" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [*DATASETS, "stream-libero", "demo"])
def test_a_plan_names_what_would_be_fetched(name, tmp_path, capsys):
    """Without a network, and without asking for one of the machine's GPUs."""
    everything = fetches(load_config(name))
    if name == "demo":
        assert everything == []
        return
    wanted = {one.what for one in everything}
    assert ("LIBERO's objects" in wanted) == name.endswith("libero")
    assert ("tokenizer" in wanted) == name.startswith("pi05")
    found = {one.what: (one.repo, one.size()) for one in everything if not one.here}  # other tests make some
    assert train.run(load_config(name), tmp_path, plan=True) is None
    told = capsys.readouterr().out
    assert all(repo in told and size in told for repo, size in found.values())
    assert "would be fetched" in told
    assert not list(tmp_path.iterdir())
    assert found["questions"] == ("lmms-lab/GQA", "68")
    kind = "pi05" if name.startswith("pi05") else "smolvla"
    assert found["policy"] == {"smolvla": ("lerobot/smolvla_base", "about 910"), "pi05": ("lerobot/pi05_base", "about 14,500")}[kind]
    assert found["demonstrations"][1] == "unknown: the Hub was not reached"


def test_a_plan_with_wrong_tasks_is_told_before_anything_is_fetched(tmp_path):
    from vla_tune.errors import UserError

    with pytest.raises(UserError, match="did you mean 'libero_object'"):
        train.run(load_config("smolvla-libero", ["rollout.tasks=[libero_objekt]"]), tmp_path, plan=True)
