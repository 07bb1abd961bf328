"""The walk over the schema: every option is explained, and what is out of its bounds is refused with a message that names it."""

import math
import re
from dataclasses import MISSING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_tune.config import Config, load_config, value_of, walk
from vla_tune.config.check import check
from vla_tune.errors import UserError
from vla_tune.methods.options import METHODS, IGSPConfig, MethodConfig, section_of

KEYS = {key.key: key for key in walk()}
BOUNDED = [key for key in KEYS.values() if key.option.bounded]
EXAMPLES = {"data.heldout": "0.1", "train.eval_every": "5"}
"""Values of settings that others need."""
CHOSEN = [key for key in KEYS.values() if key.option.choices]


@pytest.fixture
def pipeline(tmp_path):
    (tmp_path / "mine.yaml").write_text("seed: 0")
    return str(tmp_path / "mine.yaml")


def words(key, value):
    """A value as the command line has it, alone or as the items of a list."""
    one = f".{value}" if isinstance(value, float) and not math.isfinite(value) else f"{value}"
    return f"[{one}, {one}]" if key.kind.startswith("list") else one


def outside(key):
    """Values that a bounded option does not take."""
    option, step = key.option, 0.1 if "float" in key.kind else 1
    values = [] if option.at_least is None else [option.at_least - step]
    values += [] if option.above is None else [option.above, option.above - step]
    values += [] if option.at_most is None else [option.at_most + step]
    values += [] if option.below is None else [option.below]
    return values + ([math.nan, math.inf] if "float" in key.kind else [])


def inside(key):
    """The outermost values that it takes."""
    option = key.option
    return [bound for bound in (option.at_least, option.at_most) if bound is not None]


def test_every_option_says_what_it_does():
    silent = [key for key, one in KEYS.items() if not one.help or one.help[0].isspace() or one.help.endswith(".")]
    assert not silent
    assert all(key.section.__doc__ for key in KEYS.values())


def test_the_walk_finds_what_a_configuration_holds():
    def leaves(values, prefix=""):
        for key, value in values.items():
            yield from leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [(f"{prefix}{key}", value)]

    found = {key: one.default for key, one in KEYS.items() if "[]" not in key and one.default is not MISSING}
    assert {"name": "", **found} == dict(leaves(Config(name="").to_dict()))
    assert {key for key in KEYS if "[]" in key} == {f"stream.tasks[].{name}" for name in ("name", "manifest", "tasks", "instructions")}


def test_every_number_has_a_lower_bound():
    numbers = {key for key, one in KEYS.items() if {"int", "float"} & set(re.findall(r"\w+", one.kind))}
    assert numbers - {key.key for key in BOUNDED if key.option.at_least is not None or key.option.above is not None} == set()


@pytest.mark.parametrize("key", BOUNDED, ids=lambda key: key.key)
def test_a_number_out_of_its_bounds_is_refused(pipeline, key):
    refused = outside(key)
    assert refused
    for value in refused:
        with pytest.raises(UserError) as caught:
            load_config(pipeline, [f"{key.key}={words(key, value)}"])
        assert str(caught.value).startswith(f"{key.key}=")
        assert str(caught.value).endswith(f": must be {key.values}")


@pytest.mark.parametrize("key", BOUNDED, ids=lambda key: key.key)
def test_the_bounds_themselves_are_taken(pipeline, key):
    for value in inside(key):
        needed = [f"{other}={EXAMPLES[other]}" for other in key.option.needs]
        assert value_of(load_config(pipeline, [f"{key.key}={words(key, value)}", *needed]), key.key) in (value, [value, value])


@pytest.mark.parametrize("key", CHOSEN, ids=lambda key: key.key)
def test_a_choice_is_one_of_a_few(pipeline, key):
    for choice in key.option.choices:
        assert value_of(load_config(pipeline, [f"{key.key}={words(key, choice)}"]), key.key) in (choice, [choice, choice])
    with pytest.raises(UserError, match=f": must be one of {', '.join(key.option.choices)}$"):
        load_config(pipeline, [f"{key.key}={words(key, 'other')}"])


def test_messages_name_key_value_and_bound(pipeline):
    for override, message in {
        "train.steps=0": "train.steps=0: must be at least 1",
        "train.lr=0": "train.lr=0.0: must be a finite number above 0",
        "method.ewc.weight=-1": "method.ewc.weight=-1.0: must be a finite number, at least 0",
        "anchor.energy=1.5": "anchor.energy=1.5: must be above 0 and at most 1",
        "data.heldout=0.6": "data.heldout=0.6: must be at least 0 and at most 0.5",
        "train.betas=[0.9]": "train.betas=[0.9]: must be 2 numbers, each at least 0 and below 1",
        "train.trackers=[tensorboard,mlflow]": "train.trackers=['tensorboard', 'mlflow']: must be one of tensorboard, wandb, trackio",
        "train.accumulate=3": "train.accumulate=3: must divide train.batch_size=32; "
        "set train.batch_size=30 or 33, or train.accumulate=2 or 4",
        "train.accumulate=64": "train.accumulate=64: must divide train.batch_size=32; set train.batch_size=64, or train.accumulate=32",
        "seed=4294967296": "seed=4294967296: must be at least 0 and at most 4294967295",
    }.items():
        with pytest.raises(UserError) as caught:
            load_config(pipeline, [override])
        assert str(caught.value) == message


def test_what_an_option_needs_is_an_option():
    assert {needed for key in KEYS.values() for needed in key.option.needs} <= set(KEYS)


def test_an_option_without_what_it_needs_is_refused(pipeline):
    with pytest.raises(UserError, match=r"^data.heldout_frames=5: does nothing without data.heldout; set data.heldout"):
        load_config(pipeline, ["data.heldout_frames=5"])
    assert load_config(pipeline, ["data.heldout_frames=5", "data.heldout=0.1"]).data.heldout_frames == 5
    with pytest.raises(UserError, match=r"^train.keep_best=True: does nothing without train.eval_every"):
        load_config(pipeline, ["train.keep_best=true", "data.heldout=0.1"])
    assert load_config(pipeline, ["train.keep_best=true", "data.heldout=0.1", "train.eval_every=5"]).train.keep_best


@given(size=st.integers(1, 200), parts=st.integers(1, 300))
def test_what_is_proposed_for_a_batch_that_cannot_be_split_can_be(size, parts):
    config = Config(name="mine")
    config.train.batch_size, config.train.accumulate = size, parts
    if size % parts == 0:
        check(config)
        return
    with pytest.raises(UserError, match="must divide") as caught:
        check(config)
    sizes, numbers = (re.findall(r"\d+", part) for part in str(caught.value).split("; set ")[1].split(", or "))
    assert all(int(other) % parts == 0 and abs(int(other) - size) < parts for other in sizes)
    assert all(size % int(other) == 0 for other in numbers)
    assert sizes
    assert numbers


def test_a_section_can_be_walked_alone():
    keys = [key.key for key in walk(IGSPConfig, "method.igsp.")]
    assert keys == [key for key in KEYS if key.startswith("method.igsp.")]


def test_the_table_of_methods_and_their_sections_agree():
    sections = {key.key.split(".")[1] for key in walk(MethodConfig, "method.") if key.key.count(".") > 1}
    assert {section_of(name) for name in METHODS} - {""} == sections
    assert section_of("lora_per_task") == section_of("lora") == "lora"
    assert all(entry.does and entry.learns for entry in METHODS.values())
