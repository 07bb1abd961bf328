"""Of the whole schema: a typo names the key that was meant, a value of another type is told with its key, sound ones are taken."""

import json
import typing

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from vla_tune.config import Config, load_config, structured, value_of, walk
from vla_tune.config.keys import hints_of, is_section, known_keys, without_none
from vla_tune.errors import UserError
from vla_tune.resources import available

KEYS = [key.key for key in walk() if "[]" not in key.key]
LETTERS = "abcdefghijklmnopqrstuvwxyz_.2"
WORDS = st.sampled_from(["soon", "x y", "1.5.2", "--", "1e", "0x", "ture", "inf-", "{}", "[]"])


def refused(values, overrides):
    with pytest.raises(UserError) as caught:
        structured(Config, {"name": "mine", **values}, overrides, "mine.yaml")
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in message
    return message


def told(overrides):
    """What is said of overrides, `taken` where they are sound."""
    try:
        structured(Config, {"name": "mine"}, overrides, "mine.yaml")
    except UserError as error:
        return str(error)
    return "taken"


def nested(key, value):
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def hint_of(key):
    hint = Config
    for part in key.split("."):
        hint = hints_of(without_none(hint))[part]
    return hint


@st.composite
def typos(draw, key):
    """The key with one letter more, fewer, another, or two that changed places."""
    at = draw(st.integers(0, len(key) - 1))
    letter = draw(st.sampled_from(LETTERS))
    return draw(
        st.sampled_from(
            [
                key[:at] + key[at + 1 :],
                key[:at] + letter + key[at:],
                key[:at] + letter + key[at + 1 :],
                key[:at] + key[at + 1 : at + 2] + key[at] + key[at + 2 :],
            ]
        )
    )


@settings(max_examples=250)
@given(st.data())
def test_one_edit_of_any_key_names_it(data):
    key = data.draw(st.sampled_from(KEYS))
    typo = data.draw(typos(key))
    parts = typo.split(".")
    assume(typo not in known_keys(Config))
    assume(not any(part in ("settings", "rename") for part in parts[:2]))  # what is below is the user's own
    assume(not any(".".join(parts[:length]) in KEYS for length in range(1, len(parts))))  # a value with something below it
    assert f"'{key}'" in refused({}, [f"{typo}=1"])
    assert f"'{key}'" in refused(nested(typo, 1), [])


def wrong_for(hint):
    """Values of other types than a field's, as YAML or JSON would have them."""
    inner = without_none(hint)
    kind = typing.get_origin(inner) or inner
    mapping, listed = st.just({"a": 1}), st.just([[1]])
    null = st.nothing() if inner is not hint else st.none()
    if kind is str:
        return mapping | listed | null
    if kind is dict:
        return WORDS.filter(lambda one: one != "{}") | st.integers() | listed | null
    if kind is list:
        return WORDS.filter(lambda one: one != "[]") | st.integers() | mapping | null | st.just([{"a": 1}])
    numbers = st.nothing() if kind is float else st.just(1.5)
    truth = st.just(5) if kind is bool else st.booleans()
    return mapping | listed | null | WORDS | numbers | truth


@settings(max_examples=300)
@given(st.data())
def test_a_value_of_another_type_is_told_with_its_key(data):
    key = data.draw(st.sampled_from(KEYS))
    value = data.draw(wrong_for(hint_of(key)))
    assert key in refused(nested(key, value), [])
    text = value if isinstance(value, str) else json.dumps(value)
    message = refused({}, [f"{key}={text}"])
    assert key in message
    assert message.startswith("command line: ")


@settings(max_examples=100)
@given(st.sampled_from(known_keys(Config)), st.text(min_size=1, max_size=20))
@example("train.betas", "[[]")
@example("policy.settings", "{a: &b [*b]}")
def test_whatever_is_typed_is_taken_or_told_in_one_line(key, text):
    assume("${" not in text)
    assert len(told([f"{key}={text}"]).splitlines()) == 1


@given(
    st.lists(st.text(max_size=12) | st.sampled_from(["train.steps", "=", "5", "--steps", "[a,", "b]", "steps:"]), min_size=1, max_size=4)
)
def test_whatever_words_are_typed(words):
    assert len(told(words).splitlines()) == 1


def test_every_default_is_taken_as_it_is_shown():
    shown = {key: value_of(Config(name="mine"), key) for key in KEYS}
    texts = [f"{key}={json.dumps(value) if not isinstance(value, str) else value}" for key, value in shown.items()]
    assert structured(Config, {"name": "mine"}, texts, "mine.yaml") == Config(name="mine")


@pytest.mark.parametrize("name", available("pipelines"))
def test_every_shipped_pipeline_loads(name):
    config = load_config(name)
    assert config.name == name
    again = structured(Config, config.to_dict(), [], "artifact.json")
    assert again == config


def test_every_section_is_told_as_one():
    for key in known_keys(Config):
        if is_section(hint_of(key)):
            assert f"'{key}' is a section" in refused({}, [f"{key}=5"])
