"""Instructions as the policy's own processor words and cuts them."""

import sys
from pathlib import Path

import pytest

from vla_tune.preflight.instructions import instructions, open_processor, tokenized

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from vlas import small_pi

LONG = "Carefully move the gripper of the left arm towards the middle of the wooden table, avoid the glass, then pick up the "


@pytest.fixture(scope="module")
def paligemma(tmp_path_factory):
    """Its tokenizer, one token a letter, where lerobot's pi0 and pi0.5 look for it."""
    with small_pi(tmp_path_factory.mktemp("paligemma")) as folder:
        yield folder


@pytest.fixture
def looked(policy_of, plain, paligemma):
    """A function from instructions to what stops, what is told, and how many tokens each has."""

    def look(*texts, kind="smolvla", length=24, path=None):
        policy = policy_of(plain, kind, tokenizer_max_length=length)
        every = tokenized(texts, policy, open_processor(policy, path))
        found = list(instructions(every))
        return [one.text for one in found if one.stops], [one.text for one in found if not one.stops], [one.count for one in every]

    return look


def test_the_demos_instructions_are_silent(looked):
    from lerobot.envs.metaworld import TASK_DESCRIPTIONS

    stops, told, counts = looked(*dict.fromkeys(TASK_DESCRIPTIONS.values()))
    assert (stops, told) == ([], [])
    assert 1 < min(counts) <= max(counts) <= 24


def test_two_that_are_cut_to_the_same_stop(looked):
    stops, told, counts = looked(LONG + "red cube", LONG + "blue cylinder", "Wave")
    assert len(stops) == 1
    assert all(f"'{LONG}{end}'" in stops[0] for end in ("red cube", "blue cylinder"))
    assert f"policy.settings.tokenizer_max_length={max(counts)}" in stops[0]
    assert not told
    # as the message says
    assert looked(LONG + "red cube", LONG + "blue cylinder", "Wave", length=max(counts))[:2] == ([], [])


@pytest.mark.parametrize("kind", ["smolvla", "pi0", "pi05"])
def test_one_that_is_cut_is_told_with_the_length_that_keeps_it(looked, kind):
    stops, told, counts = looked(LONG + "red cube", "Wave", kind=kind, length=60)
    assert not stops
    assert len(told) == 1
    assert f"'{LONG}red cube' has {counts[0]} tokens and the policy reads 60" in told[0]
    assert f"policy.settings.tokenizer_max_length={counts[0]}" in told[0]
    assert looked(LONG + "red cube", "Wave", kind=kind, length=counts[0])[:2] == ([], [])
    assert looked(LONG + "red cube", "Wave", kind=kind, length=counts[0] - 1)[1]


def test_tokens_are_counted_in_the_policys_own_wording(looked):
    text = "wave"
    assert looked(text, kind="pi0", length=48)[2] == [len(text) + 1]  # and a newline
    worded = "Task: wave, State: 128 128 128 128;\nAction: "
    assert looked(text, kind="pi05", length=200)[2] == [len(worded)]


def test_pi05_cuts_the_state_of_what_it_reads_of_the_instruction(looked):
    stops, told, _ = looked(LONG + "red cube", LONG + "blue cylinder", kind="pi05", length=90)
    assert len(stops) == 1
    assert "the same 90 tokens" in stops[0]
    stops, told, _ = looked("wave", "nod", kind="pi05", length=20)
    assert not stops
    assert "2 instructions are cut" in told[0]


def test_the_length_of_a_saved_policy_is_that_of_its_processor(looked, policy_of, plain, tmp_path):
    from lerobot.policies.factory import make_pre_post_processors

    policy = policy_of(plain, tokenizer_max_length=24)
    for processor in make_pre_post_processors(policy, dataset_stats={}):
        processor.save_pretrained(tmp_path)
    stops, _, counts = looked(LONG + "red cube", LONG + "blue cylinder", path=str(tmp_path))
    assert len(stops) == 1
    assert looked(LONG + "red cube", LONG + "blue cylinder", path=str(tmp_path), length=max(counts))[:2] == ([], [])


def test_those_that_a_tokenizer_cannot_tell_apart_stop(looked):
    stops, _, _ = looked("向左", "向右", kind="pi0", length=48)  # none of these characters is in the vocabulary
    assert len(stops) == 1
    assert "'向左' and '向右'" in stops[0]
    assert "tokenizer_max_length" not in stops[0]


def test_case_and_spaces_alone_are_told(looked):
    stops, told, _ = looked("Open the drawer", "open the  drawer ", "Close the drawer")
    assert not stops
    assert len(told) == 1
    assert "'Open the drawer' and 'open the  drawer '" in told[0]


def test_an_empty_one_stops(looked):
    stops, told, _ = looked("Open the drawer", " ")
    assert len(stops) == 1
    assert "is empty" in stops[0]
    assert not told


def test_without_the_tokenizer_there_is_nothing_to_say(policy_of, plain):
    policy = policy_of(plain)
    policy.vlm_model_name = "nobody/nothing"
    assert open_processor(policy, None) is None
