"""YAML of other people's editors: what is read, and what is refused with file and line."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_tune.config import load_config, read_yaml
from vla_tune.config.reading import UnreadableError, parse
from vla_tune.errors import UserError

TEN = "[" + ", ".join(["*{}"] * 10) + "]"
BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{b}: &{b} {TEN.replace('{}', a)}\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)
)
MERGES = BOMB.replace("[1, 1, 1, 1, 1, 1, 1, 1, 1, 1]", "{x: 1}").replace(" [*", " {<<: [*").replace("]\n", "]}\n")


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "mine.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("train:\n\tsteps: 5", "line 2: found character '\\t'"),
        ("seed: 1\nseed: 2", "line 2: 'seed' stands twice"),
        ("train:\n  steps: 1\n  steps: 1", "line 3: 'steps' stands twice"),
        ("- seed: 1", "found a list"),
        ("", "found nothing"),
        ("# nothing\n", "found nothing"),
        ("train.steps=5", "found 'train.steps=5'"),
        ("train.steps: 5", "in a file a dot is a level: train: {steps: ...}"),
        ("seed: 1\n---\nseed: 2", "another document"),
        ("seed: 1\nname: Käse".encode("latin-1"), "line 2 is not UTF-8"),
        ("seed: 1".encode("utf-16"), "line 1 is not UTF-8"),
        (b"seed: 1\x00", "not readable as YAML"),
        (b"\x89PNG\r\n\x1a\n", "line 1 is not UTF-8"),
        (BOMB, "aliases"),
        (MERGES, "aliases"),
        ("a: &a [*a]", "aliases"),
        ("seed: " + "[" * 800, "nested too deep"),
        ("seed: !!bool maybe", "not readable as YAML"),
        ("seed: !!python/object/apply:os.system [ls]", "not readable as YAML"),
        ("? [1]\n: 2", "unhashable key"),
        ("seed: 1.5", "seed=1.5: must be a whole number"),
        ("seed: 1:30", "seed=1:30: must be a whole number"),
        ("seed: on", "seed=on: must be a whole number"),
        ("method: lora", "did you mean method.name=lora?"),
        ("lora: {rank: 3}", "did you mean 'method.lora.rank'?"),
        ("data: {root: null, repo_id: }\nname:", "name=: must be text"),
    ],
)
def test_a_file_that_is_no_configuration(file, content, told):
    path = file(content)
    with pytest.raises(UserError) as caught:
        load_config(str(path))
    assert str(caught.value).startswith(f"{path}")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_editors_and_people_do_is_read(file):
    path = file(
        b"\xef\xbb\xbftrain: &all {lr: 1e-3, compile: no, steps: 0x10}\r\nmethod: {name: lora}\r\nname: 007\r\ndata:\r\n"
        b"policy: {base_vlm: demo, settings: {a: 1e-3, b: yes, c: 2020-01-01, on: 1, <<: {d: 1}}}\r\n".replace(b"data:\r\n", b"")
    )
    config = load_config(str(path))
    assert (config.train.lr, config.train.compile, config.train.steps, config.name) == (1e-3, False, 16, "007")
    assert config.policy.settings == {"a": 1e-3, "b": True, "c": "2020-01-01", "on": 1, "d": 1}


def test_text_stays_as_it_is_written(file):
    path = file("data: {repo_id: no, rename: {1: 1.50, null: ~x}}\nrollout: {tasks: [0o7, 1e3, on]}\npolicy: {base_vlm: demo}")
    config = load_config(str(path))
    assert config.data.repo_id == "no"
    assert config.data.rename == {"1": "1.50", "null": "~x"}
    assert config.rollout.tasks == ["0o7", "1e3", "on"]


def test_a_file_that_cannot_be_opened(tmp_path):
    with pytest.raises(UserError, match="not readable"):
        read_yaml(tmp_path)
    (tmp_path / "large.yaml").touch()
    with (tmp_path / "large.yaml").open("r+b") as large:
        large.truncate(20_000_000)
    with pytest.raises(UserError, match="it has 20 MB"):
        read_yaml(tmp_path / "large.yaml")


@settings(max_examples=200)
@given(st.one_of(st.text(), st.text("-:[]{}&*!?|>'\"%@`,# \n\tab1~.", max_size=12)))
def test_no_text_ends_otherwise(text):
    told = "something"
    try:
        parse(text)
    except UnreadableError as error:
        told = str(error)
    assert len(told.splitlines()) == 1
