"""Pipelines and overrides: what is accepted, and that every mistake gets one message that names it."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_tune.config import METHODS, Config, load_config, structured
from vla_tune.errors import UserError


@pytest.fixture
def pipeline(tmp_path):
    def write(text):
        file = tmp_path / "mine.yaml"
        file.write_text(text)
        return str(file)

    return write


def refused(pipeline, *overrides):
    with pytest.raises(UserError) as caught:
        load_config(pipeline, list(overrides))
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


def test_a_file_is_named_after_itself_and_overrides_win_in_order(pipeline):
    config = load_config(pipeline("seed: 3\ntrain: {steps: 5, lr: 1.0e-4}"), ["train.steps=7", "train.steps=9", "train.lr=1e-3"])
    assert (config.name, config.seed, config.train.steps, config.train.lr) == ("mine", 3, 9, 1e-3)
    assert config.train.batch_size == Config(name="").train.batch_size


def test_a_shipped_pipeline_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("demo").policy.base_vlm == "demo"


def test_lists_mappings_and_none_can_be_overridden(pipeline):
    file = pipeline("policy: {path: here, settings: {chunk_size: 16, resize: [64, 64]}}\nrollout: {tasks: [c]}")
    config = load_config(
        file, ["rollout.tasks=[a,b]", "policy.settings.chunk_size=8", "policy.path=null", "train={steps: 7}", "anchor.path=a=b"]
    )
    assert config.rollout.tasks == ["a", "b"]
    assert config.policy.settings == {"chunk_size": 8, "resize": [64, 64]}
    assert config.policy.path is None
    assert config.train.steps == 7
    assert config.anchor.path == "a=b"


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("train.stepz=3", "did you mean 'train.steps'"),
        ("trian.steps=3", "trian.steps"),
        ("train.steps.more=3", "'train.steps' is a single value"),
        ("train={stepz: 3}", "train.stepz"),
        ("rollout.tasks[0]=x", "did you mean 'rollout.tasks'"),
        ("train.steps=soon", "train.steps"),
        ("train.steps=1.5", "train.steps"),
        ("train.steps=", "train.steps"),
        ("seed=true", "seed"),
        ("train=5", "'train' is a section; set one of its keys: train.steps"),
        ("policy.settings=3", "policy.settings"),
        ("rollout.tasks=reach-v3", "rollout.tasks"),
        ("rollout.tasks=[a,", "rollout.tasks=[a,"),
        ("name=null", "name"),
    ],
)
def test_a_wrong_override_is_blamed_on_the_command_line(pipeline, override, named):
    message = refused(pipeline("seed: 1"), override)
    assert message.startswith("command line:")
    assert named in message


@pytest.mark.parametrize("override", ["train.steps", "=3", "seed"])
def test_an_override_without_key_or_value_is_explained(pipeline, override):
    assert "KEY=VALUE" in refused(pipeline("seed: 1"), override)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("train: {stepz: 3}", "did you mean 'train.steps'"),
        ("train: {steps: soon}", "train.steps"),
        ("train:", "train"),
        ("train: [1]", "'train' is a section"),
        ("1: 2", "'1'"),
        ("policy: {path: '${nothing}'}", "policy.path"),
        ("rollout: {tasks: [null]}", "rollout.tasks"),
        ("seed: 2020-01-01", "seed"),
        ("a: [", "not readable as YAML"),
        ("\tseed: 1", "line 1"),
        ("- seed", "expected a mapping"),
        ("", "expected a mapping"),
        ("!!python/object:os.system {}", "not readable as YAML"),
    ],
)
def test_a_wrong_pipeline_file_is_blamed_on_the_file(pipeline, text, named):
    file = pipeline(text)
    message = refused(file)
    assert message.startswith(f"{file}:")
    assert named in message


def test_a_file_that_is_no_text_is_refused(tmp_path):
    file = tmp_path / "binary.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    assert "not readable as YAML" in refused(str(file))


def test_an_unknown_pipeline_names_the_nearest_and_a_missing_file_is_named(tmp_path):
    assert "did you mean 'demo'" in refused("dmeo")
    assert str(tmp_path / "none.yaml") in refused(str(tmp_path / "none.yaml"))


def test_an_unknown_method_names_the_nearest(pipeline):
    assert "did you mean 'aegis'" in refused(pipeline("seed: 1"), "method.name=aegi")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_accepted(pipeline, method):
    assert load_config(pipeline("seed: 1"), [f"method.name={method}"]).method.name == method


@pytest.mark.parametrize("rate", ["0", "-1e-3", ".nan", ".inf"])
def test_the_learning_rate_is_a_finite_number_above_zero(pipeline, rate):
    assert "train.lr" in refused(pipeline("seed: 1"), f"train.lr={rate}")


def test_an_option_of_another_method_is_warned_of(pipeline, capsys):
    file = pipeline("method: {name: full, lora: {rank: 4}, full: {vlm_lr: 0.5}}")
    load_config(file)
    assert capsys.readouterr().err == "warning: method.lora.rank=4 is not used: method.name is full\n"
    load_config(file, ["method.name=lora", "method.full.vlm_lr=1"])
    assert capsys.readouterr().err == ""


names = st.text("abcdefgh-", min_size=1, max_size=8)


@settings(max_examples=30)  # a parse takes a tenth of a second
@given(
    seed=st.integers(0, 2**62),
    lr=st.floats(1e-9, 1e3),
    path=st.none() | st.text(st.characters(codec="utf-8", exclude_characters="$", exclude_categories=["C"]), min_size=1),
    tasks=st.lists(names),
    settings=st.dictionaries(names, st.integers() | st.booleans() | names | st.lists(st.integers())),
)
def test_what_an_artifact_records_parses_back_to_the_same(seed, lr, path, tasks, settings):
    config = Config(name="round", seed=seed)
    config.train.lr, config.train.path, config.rollout.tasks, config.policy.settings = lr, path, tasks, settings
    assert structured(Config, yaml.safe_load(yaml.safe_dump(config.to_dict())), [], "here") == config
