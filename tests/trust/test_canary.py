"""Every place where a stranger's folder is opened, with a canary that its code would touch."""

import json
import shutil
from types import SimpleNamespace

import pytest

from vla_tune.config import load_config
from vla_tune.data.features import policy_features
from vla_tune.errors import UserError
from vla_tune.learners.pictures import load_clip
from vla_tune.learners.planned import configuration
from vla_tune.policies import adapter_class
from vla_tune.policies.loading import load_policy, load_processors, new_config, policy_config
from vla_tune.resources import demo_clip, demo_vlm
from vla_tune.stages import anchor, eval_rollout, eval_vqa, train
from vla_tune.trust.models import check_model
from vla_tune.trust.policies import STEPS, check_policy
from vla_tune.vlm.loading import load_processor, load_vlm

CODE = """import os
from pathlib import Path
from transformers import PretrainedConfig, ProcessorMixin
Path(os.environ["CANARY"]).touch()
class Own(ProcessorMixin):
    attributes = []
    @classmethod
    def from_pretrained(cls, *_args, **_kwargs):
        return cls()
class OwnConfig(PretrainedConfig):
    model_type = "own"
"""
TOUCH = 'touch "${CANARY:?}"'


@pytest.fixture
def canary(tmp_path, monkeypatch):
    file = tmp_path / "canary"
    monkeypatch.setenv("CANARY", str(file))
    yield file
    assert not file.exists()


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """What lerobot saves of a SmolVLA, without its weights: nothing of it is needed before a stranger is refused."""
    vector = {"dtype": "float32", "shape": (4,), "names": None}
    camera = {"dtype": "image", "shape": (16, 16, 3), "names": ["height", "width", "channels"]}
    features = policy_features({"observation.images.front": camera, "observation.state": vector, "action": vector})
    config = new_config(adapter_class("smolvla"), str(demo_vlm()), {}, features)
    folder = tmp_path_factory.mktemp("sound") / "policy"
    config.save_pretrained(folder)
    for processor in load_processors(SimpleNamespace(config=config)):
        processor.save_pretrained(folder)
    return folder


@pytest.fixture
def policy(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "policy")


def change(file, **values):
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**content, **values}))


def add_step(folder, step, name="policy_preprocessor.json"):
    steps = json.loads((folder / name).read_text())["steps"]
    change(folder / name, steps=[*steps, step])


def own_code(folder):
    folder.mkdir(exist_ok=True)
    (folder / "own.py").write_text(CODE)
    change(folder / "processor_config.json", processor_class="Own", auto_map={"AutoProcessor": "own.Own"})
    return folder


def set_field(folder, step, **values):
    file = folder / "policy_preprocessor.json"
    steps = json.loads(file.read_text())["steps"]
    for one in steps:
        if one["registry_name"] == step:
            one["config"] |= values
    change(file, steps=steps)


def system(folder):
    add_step(folder, {"class": "os.system", "config": {"command": TOUCH}})


POLICIES = {
    "os.system": system,
    "subprocess.Popen": lambda folder: add_step(
        folder, {"class": "subprocess.Popen", "config": {"args": ["sh", "-c", TOUCH]}}, "policy_postprocessor.json"
    ),
    "a registered step of another type": lambda folder: add_step(
        folder,
        {
            "registry_name": "action_tokenizer_processor",
            "config": {"action_tokenizer_name": str(own_code(folder / "tokenizer")), "paligemma_tokenizer_name": str(demo_vlm())},
        },
    ),
    "a tokenizer with code": lambda folder: set_field(folder, "tokenizer_processor", tokenizer_name=str(own_code(folder / "tokenizer"))),
    "a field of nobody's": lambda folder: set_field(folder, "tokenizer_processor", trust_remote_code=True),
    "a state elsewhere": lambda folder: add_step(folder, {"registry_name": "to_batch_processor", "state_file": "../x.safetensors"}),
    "a pickled state": lambda folder: add_step(folder, {"registry_name": "to_batch_processor", "state_file": "x.pt"}),
    "a VLM with code": lambda folder: own_code(folder.parent / "vlm"),
}


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_is_refused_before_anything_of_it_runs(canary, policy, name):
    POLICIES[name](policy)
    with pytest.raises(UserError) as refused:
        policy_config(str(policy))
    assert "\n" not in str(refused.value)
    assert any(part in str(refused.value) for part in (f"{policy}/", f"{policy.parent}/vlm/"))


def opened_by(stage, **options):
    def opens(folder, run):
        paths = [f"train.path={folder}"] if stage in (eval_vqa, eval_rollout) else [f"policy.path={folder}", "policy.settings={}"]
        stage.run(load_config("demo", ["device=cpu", *paths, "policy.base_vlm=null"]), run, **options)

    return opens


PLACES = {
    "policy_config": lambda folder, _: policy_config(str(folder)),
    "load_policy": lambda folder, _: load_policy(str(folder)),
    "load_processors": lambda folder, _: load_processors(
        SimpleNamespace(config=SimpleNamespace(type="smolvla", device="cpu", tokenizer_max_length=24, vlm_model_name=str(demo_vlm()))),
        str(folder),
    ),
    "anchor": opened_by(anchor),
    "train --plan": opened_by(train, plan=True),
    "eval-vqa": opened_by(eval_vqa),
    "eval-rollout": opened_by(eval_rollout),
}


@pytest.mark.parametrize("name", PLACES)
def test_every_place_that_opens_a_policy_refuses(canary, policy, tmp_path, name):
    system(policy)
    with pytest.raises(UserError, match=r"policy_preprocessor.json: names the class 'os.system'"):
        PLACES[name](policy, tmp_path / "run")


def own_model(folder):
    (folder / "own.py").write_text(CODE)
    change(folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.OwnConfig"})


def pickled(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'" + TOUCH.encode() + b"'\ntR.")


MODELS = {
    "a processor": own_code,
    "a model": own_model,
    "a pickle": pickled,
    "attention of the Hub's": lambda folder: change(folder / "config.json", _attn_implementation="somebody/attention"),
    "an adapter": lambda folder: change(folder / "adapter_config.json", base_model_name_or_path="somebody/model"),
}
OPENED = {
    "load_vlm": (demo_vlm, load_vlm),
    "load_processor": (demo_vlm, load_processor),
    "configuration": (demo_vlm, configuration),
    "load_clip": (demo_clip, lambda folder: load_clip(folder, "cpu")),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("place", OPENED)
def test_a_model_is_refused_before_anything_of_it_runs(canary, tmp_path, place, name):
    source, opens = OPENED[place]
    folder = shutil.copytree(source(), tmp_path / "model")
    MODELS[name](folder)
    with pytest.raises(UserError, match=str(folder)):
        opens(str(folder))


def test_what_is_sound_is_taken(canary, policy):
    check_policy(str(policy))
    assert policy_config(str(policy)).type == "smolvla"
    for folder in (demo_vlm(), demo_clip()):
        check_model(str(folder))


def test_the_lists_name_steps_and_fields_that_lerobot_has():
    import inspect

    import lerobot.policies.pi0.processor_pi0
    import lerobot.policies.pi05.processor_pi05
    import lerobot.policies.smolvla.processor_smolvla  # noqa: F401
    from lerobot.processor.pipeline import ProcessorStepRegistry

    for steps in STEPS.values():
        for name, fields in steps.items():
            assert set(fields) <= set(inspect.signature(ProcessorStepRegistry.get(name)).parameters)


PACKAGE = """from dataclasses import dataclass
from subprocess import Popen
from lerobot.processor.pipeline import ProcessorStep
@dataclass
class Same(ProcessorStep):
    def __call__(self, transition):
        return transition
    def transform_features(self, features):
        return features
"""


def test_steps_of_a_package_that_the_user_names_are_taken_and_nothing_beside_them(canary, policy, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    add_step(policy, {"class": "mine.Same", "config": {}})
    with pytest.raises(UserError, match=r"the class 'mine.Same'.*policy.trust"):
        check_policy(str(policy))
    load_config("demo", ["policy.trust=[mine]"])
    check_policy(str(policy))
    add_step(policy, {"class": "mine.Popen", "config": {"args": ["sh", "-c", TOUCH]}})
    with pytest.raises(UserError, match=r"mine.Popen"):
        check_policy(str(policy))
    load_config("demo")
    with pytest.raises(UserError, match=r"mine.Same"):
        check_policy(str(policy))
