"""Slips of the keyboard: what was meant is said, in one line, and what can be understood is taken."""

import pytest

from vla_tune.config import load_config
from vla_tune.errors import UserError


def said(*overrides, pipeline="demo"):
    with pytest.raises(UserError) as caught:
        load_config(pipeline, list(overrides))
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("overrides", "meant"),
    [
        (["--steps", "100"], "write train.steps=100"),
        (["--train.steps=100"], "write train.steps=100"),
        (["--lr", "1e-3"], "write train.lr=1e-3"),
        (["--Batch-Size=8"], "train.batch_size=8"),
        (["--overwite"], "did you mean --overwrite?"),
        (["--resume"], "no such option here"),
        (["-o", "runs/x"], "no such option"),
        (["train.steps", "100"], "train.steps=100"),
        (["train.steps", "=", "100"], "train.steps=100"),
        (["train.steps", "=100"], "train.steps=100"),
        (["train.steps=", "100"], "write train.steps=100"),
        (["steps", "100"], "train.steps=100"),
        (["train.steps:100"], "train.steps=100"),
        (["train.steps:", "100"], "train.steps=100"),
        (["train.steps==100"], "write train.steps=100"),
        (["'train.steps=100'"], "write train.steps=100"),
        (["train.steps="], "train.steps=null for none"),
        (["rollout.tasks=[a,", "b]", "seed=1"], "write 'rollout.tasks=[a, b]'"),
        (["data.rename={a:", "b}"], "write 'data.rename={a: b}'"),
    ],
)
def test_an_override_that_is_written_otherwise(overrides, meant):
    assert meant in said(*overrides)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("steps", "'train.steps'"),
        ("lora.rank", "'method.lora.rank'"),
        ("LoRA.rank", "'method.lora.rank'"),
        ("Train.Steps", "'train.steps'"),
        ("train.batch-size", "'train.batch_size'"),
        ("dataset.repo_id", "'data.repo_id'"),
        ("train.rank", "'method.lora.rank'"),
        ("policy.chunk_size", "'policy.settings.chunk_size'"),
        ("+train.steps", "'train.steps'"),
        ("stream.task", "'stream.tasks'"),
        ("xyzzy", "known: anchor, data"),
        ("train.xyzzy", "known: train.accumulate"),
    ],
)
def test_an_unknown_key(key, meant):
    assert meant in said(f"{key}=3")


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("method=lora", "did you mean method.name=lora?"),
        ("method=LoRA", "did you mean method.name=lora?"),
        ("method.lora=8", "method.lora.rank"),
        ("policy=null", "policy.path"),
        ("method.name=LoRA", "did you mean 'lora'?"),
        ("method.name=A-GEM", "did you mean 'agem'?"),
        ("rollout.tasks=touch-red", "[touch-red]"),
        ("rollout.tasks=touch-red,touch-blue", "[touch-red, touch-blue]"),
        ("data.episodes=3", "[3]"),
        ("data.episodes=0-9", "each item a whole number"),
        ("data.rename=front", "a mapping"),
        ("data.rename={a:b}", "a space belongs after a colon"),
        ("train.steps=ten", "a whole number"),
        ("train.steps=1e3", "a whole number: 1000"),
        ("train.steps=2020-01-01", "a whole number"),
        (f"train.steps={10**30}", "below 2^63"),
        ("train.compile=ture", "true or false"),
        ("train.compile=2", "true or false"),
        ("rollout.step_limit=None", "a whole number or null"),
        ("data.root=None", "data.root=null"),
        ("data.root=[x]", "text or null"),
        ('data.root="x', "not readable"),
        ("seed=yes", "a whole number"),
        ("stream.tasks=[{nam: x}]", "did you mean 'name'?"),
        ("stream.tasks=[x]", "the keys name, manifest"),
        ("policy.settings={a: !!binary aGk=}", "text, a number"),
        ("device=gpu", "did you mean cuda?"),
        ("device=CUDA", "did you mean cuda?"),
        ("device=cuda0", "did you mean cuda:0?"),
        ("device=1", "did you mean cuda:1?"),
        ("device=cuda:-1", "did you mean cuda"),
        ("name=../x", "without slashes"),
        ("data.root=folder", "data.manifest=null"),
        ("vqa.manifest=shpes", "did you mean 'shapes'?"),
        ("vqa.manifest=./shapes.yaml", "no such file or folder"),
        ("data.manifest=Metaworld_Demo", "did you mean 'metaworld-demo'?"),
        ("policy.path=~nobody-of-this-name/x", "there is no user"),
        ("data.episodes=[]", "at least one episode"),
    ],
)
def test_a_value_that_is_none(override, meant):
    message = said(override)
    assert meant in message
    assert override.partition("=")[0] in message


def test_what_can_be_understood_is_taken():
    config = load_config(
        "demo",
        [
            "train.steps = 100",
            "train.lr=1e-3",
            "train.compile=on",
            "train.weight_decay='1'",
            "anchor.samples=1_000",
            "rollout.first_seed=0x10",
            "train.grad_clip_norm=0",
            "train.path=~/runs/007: x #1",
            "policy.path=1e3",
            "data.rename.observation.images.front=no",
            "policy.settings.deep.er=[1e-3, no]",
            "device=cuda:1",
            "name=2020-01-01",
        ],
    )
    train = config.train
    assert (train.steps, train.lr, train.compile, train.weight_decay, train.grad_clip_norm) == (100, 1e-3, True, 1.0, 0)
    assert (config.anchor.samples, config.rollout.first_seed, config.device, config.name) == (1000, 16, "cuda:1", "2020-01-01")
    assert train.path.endswith("/runs/007: x #1")
    assert "~" not in train.path
    assert config.policy.path == "1e3"
    assert config.data.rename == {"observation.images.front": "no"}
    assert config.policy.settings["deep"] == {"er": [1e-3, False]}


def test_arithmetic_that_cannot_work():
    assert "set at least 0.334" in said("data.episodes=[1, 2, 2, 5]", "data.heldout=0.1")
    assert load_config("demo", ["data.episodes=[1, 2, 5]", "data.heldout=0.334"]).data.episodes
    assert "leave data.heldout out" in said("data.episodes=[1]", "data.heldout=0.1")
    looks = ["method.igsp.check_every=11", "train.steps=20"]
    assert "would never be looked at" in said(*looks, pipeline="stream-drawn")
    assert load_config("demo", looks).method.igsp.check_every == 11


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Demo", "did you mean 'demo'?"),
        ("demo.yaml", "the shipped pipeline is called demo"),
        ("folder", "a folder; give the path of a YAML file in it, such as mine.yaml"),
        ("folder/min.yaml", "did you mean 'mine.yaml'?"),
        ("plain", "its path is ./plain"),
        ("seed=3", "the pipeline comes first"),
        ("", "known: demo"),
    ],
)
def test_a_pipeline_that_is_none(tmp_path, monkeypatch, name, meant):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.yaml").write_text("seed: 0")
    (tmp_path / "plain").write_text("seed: 0")
    assert meant in said(pipeline=name)
    assert load_config("./plain").seed == 0
