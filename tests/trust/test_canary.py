"""Every place where a stranger's folder is opened, with a canary that its code would touch."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest
from strangers import PICKLE, TOUCH

from vla_tune.config import load_config
from vla_tune.data.features import policy_features
from vla_tune.errors import UserError
from vla_tune.learners.pictures import load_clip
from vla_tune.learners.planned import configuration
from vla_tune.policies import adapter_class
from vla_tune.policies.devices import on_device
from vla_tune.policies.loading import load_policy, load_processors, new_config, policy_config
from vla_tune.resources import demo_clip, demo_vlm
from vla_tune.stages import anchor, check, eval_rollout, eval_vqa, train
from vla_tune.stages.early import check_early
from vla_tune.trust.models import check_model
from vla_tune.trust.packages import trust
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


def piped(folder):
    (folder / "policy_preprocessor.json").unlink()
    os.mkfifo(folder / "policy_preprocessor.json")


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
    "a state that is another file's": lambda folder: add_step(folder, {"registry_name": "to_batch_processor", "state_file": None}),
    "a tokenizer that is no name": lambda folder: set_field(folder, "tokenizer_processor", tokenizer_name=[str(own_code(folder / "t"))]),
    "a processor that is a pipe": lambda folder: (
        (folder / "policy_preprocessor.json").unlink(),
        os.mkfifo(folder / "policy_preprocessor.json"),
    ),
    "steps that are none": lambda folder: change(folder / "policy_preprocessor.json", steps={"class": "os.system"}),
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
    def opens(folder, run, config):
        paths = [f"train.path={folder}"] if stage in (eval_vqa, eval_rollout) else [f"policy.path={folder}", "policy.settings={}"]
        stage.run(config("device=cpu", *paths, "policy.base_vlm=null"), run, **options)

    return opens


PLACES = {
    "policy_config": lambda folder, *_: policy_config(str(folder)),
    "load_policy": lambda folder, *_: load_policy(str(folder)),
    "load_processors": lambda folder, *_: load_processors(
        SimpleNamespace(config=SimpleNamespace(type="smolvla", device="cpu", tokenizer_max_length=24, vlm_model_name=str(demo_vlm()))),
        str(folder),
    ),
    "anchor": opened_by(anchor),
    "train": opened_by(train),
    "train --plan": opened_by(train, plan=True),
    "before lerobot is imported": lambda folder, _, config: check_early(config(f"policy.path={folder}", "policy.settings={}"), "train"),
    "check": lambda folder, _, config: check.run(config(f"policy.path={folder}", "policy.settings={}")),
    "eval-vqa": opened_by(eval_vqa),
    "eval-rollout": opened_by(eval_rollout),
}


@pytest.mark.parametrize("name", PLACES)
def test_every_place_that_opens_a_policy_refuses(canary, policy, tmp_path, small_config, name):
    system(policy)
    with pytest.raises(UserError, match=r"policy_preprocessor.json: names the class 'os.system'"):
        PLACES[name](policy, tmp_path / "run", small_config)


def own_model(folder):
    (folder / "own.py").write_text(CODE)
    change(folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.OwnConfig"})


def pickled(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(PICKLE)


def sharded(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(PICKLE)
    change(folder / "model.safetensors.index.json", metadata={}, weight_map={"lm_head.weight": "pytorch_model.bin"})


def padded(folder):
    own_model(folder)
    change(folder / "config.json", notes="x" * 3_000_000)


MODELS = {
    "a processor": own_code,
    "a model behind much else": padded,
    "an index of pickles": sharded,
    "weights that are named": lambda folder: change(folder / "config.json", transformers_weights="adapter_model.bin"),
    "weights elsewhere": lambda folder: change(folder / "config.json", transformers_weights="../other/model.safetensors"),
    "a tower's attention of the Hub's": lambda folder: change(folder / "config.json", attn_implementation={"vision_config": "some/body"}),
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


@pytest.fixture
def trusting():
    yield lambda *packages: trust(packages)
    trust([])


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


def test_steps_of_a_package_that_the_user_names_are_taken_and_nothing_beside_them(canary, policy, tmp_path, monkeypatch, trusting):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    add_step(policy, {"class": "mine.Same", "config": {}})
    with pytest.raises(UserError, match=r"the class 'mine.Same'.*policy.trust"):
        check_policy(str(policy))
    on_device(load_config("demo", ["device=cpu", "policy.trust=[mine]"]))
    check_policy(str(policy))
    add_step(policy, {"class": "mine.Popen", "config": {"args": ["sh", "-c", TOUCH]}})
    with pytest.raises(UserError, match=r"mine.Popen"):
        check_policy(str(policy))
    on_device(load_config("demo", ["device=cpu"]))
    with pytest.raises(UserError, match=r"mine.Same"):
        check_policy(str(policy))


def test_what_a_trusted_step_names_is_looked_at_too(canary, policy, trusting):
    trusting("lerobot")
    named = {"action_tokenizer_name": str(own_code(policy / "tokenizer")), "paligemma_tokenizer_name": str(demo_vlm())}
    add_step(policy, {"registry_name": "action_tokenizer_processor", "config": named})
    with pytest.raises(UserError, match=r"processor_config.json: 'auto_map'"):
        check_policy(str(policy))


@pytest.mark.parametrize("packages", ["[os.path]", "['']", "[../mine]"])
def test_a_trusted_package_is_a_name(packages):
    with pytest.raises(UserError, match=r"policy\.trust"):
        load_config("demo", [f"policy.trust={packages}"])


def test_a_type_without_an_adapter_makes_no_configuration(policy):
    change(policy / "config.json", type="groot")
    with pytest.raises(UserError, match="'groot'"):
        policy_config(str(policy))


def test_what_the_hub_hands_out_in_part_is_not_opened(monkeypatch):
    """A repository with one file that cannot be fetched would else be opened without a look."""

    def broken(*_args, **_settings):
        raise OSError("404 for x.json")

    monkeypatch.setattr("huggingface_hub.snapshot_download", broken)
    for opens in (policy_config, load_vlm, lambda name: load_clip(name, "cpu")):
        with pytest.raises(UserError, match=r"some/body.*cannot be fetched"):
            opens("some/body")
