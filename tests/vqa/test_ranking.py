"""Likelihood ranking against one forward pass a candidate, for both families of VLMs; what the candidates are."""

import pytest
import torch
from datasets import Dataset
from PIL import Image
from vlas import small_paligemma

from vla_tune.resources import demo_vlm
from vla_tune.vlm.loading import load_vlm
from vla_tune.vlm.prompts import prompts_of
from vla_tune.vqa.dataset import vqa_questions
from vla_tune.vqa.ranking import candidates, rank
from vla_tune.vqa.scorers import scores


@pytest.fixture(scope="module")
def demo():
    return load_vlm(str(demo_vlm()))


@torch.no_grad()
def slow_likelihood(vlm, processor, picture, text, answer):
    """The sum over the reply's tokens of their log-probabilities behind the prompt and what came before, one pass a token."""
    prompts = prompts_of(processor)
    inputs = dict(prompts.inputs([picture], [text]))
    total = 0.0
    for token in prompts.tokenizer(prompts.reply(answer), add_special_tokens=False)["input_ids"]:
        total += float(vlm(**inputs).logits[0, -1].log_softmax(-1)[token])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], 1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones(1, 1, dtype=torch.long)], 1)
        if "token_type_ids" in inputs:
            inputs["token_type_ids"] = torch.cat([inputs["token_type_ids"], torch.ones(1, 1, dtype=torch.long)], 1)
    return total


def slowest(vlm, processor, questions, among):
    return [
        max(answers, key=lambda answer: slow_likelihood(vlm, processor, row["image"], row.get("prompt", row["question"]), answer))
        for row, answers in zip(questions, among, strict=True)
    ]


@pytest.mark.parametrize("batch_size", [1, 7])
def test_ranking_equals_one_candidate_at_a_time(demo, batch_size):
    vlm, processor = demo
    questions = vqa_questions("shapes", "test", 12)
    among = candidates("exact", questions, vqa_questions("shapes", "anchor"))
    found = rank(vlm, processor, questions, among, batch_size=batch_size, description="test")
    assert found == slowest(vlm, processor, questions, among)


def test_ranking_of_a_paligemma_and_of_pictures_of_different_sizes(tmp_path):
    vlm, processor = load_vlm(str(small_paligemma(tmp_path)))
    pictures = [Image.new("RGB", size, colour) for size, colour in (((30, 40), "red"), ((60, 20), "blue"))]
    questions = Dataset.from_dict({"image": pictures, "question": ["what?", "which colour is it?"], "prompt": ["p?", "a longer prompt?"]})
    among = [["red", "a long answer", "no"], ["blue", "b"]]
    assert rank(vlm, processor, questions, among, batch_size=5, description="test") == slowest(vlm, processor, questions, among)


def test_the_shipped_vlm_ranks_as_well_as_it_answers(demo):
    vlm, processor = demo
    questions = vqa_questions("shapes", "test", 60)
    among = candidates("exact", questions, vqa_questions("shapes", "anchor"))
    found = rank(vlm, processor, questions, among, batch_size=100, description="test")
    assert scores("exact", found, questions).mean() >= 0.8


def test_candidates():
    seen = Dataset.from_dict(
        {"type": ["a", "a", "b"], "answers": [["Red", "red", "blue"], ["blue", "red"], [str(n) for n in range(20)]]},
    )
    open_ = Dataset.from_dict({"type": ["a", "b", "new"]})
    found = candidates("vqa", open_, seen)
    assert found[0] == ["red", "blue"]
    assert found[1] == sorted(map(str, range(20)))[:16]
    assert found[2][:2] == ["red", "blue"]  # a type that was never seen: the most frequent of all
    assert candidates("yes_no", open_, seen) == [["yes", "no"]] * 3
    options = Dataset.from_dict({"type": ["a", "b"], "choices": [["cat", "dog", "cow"], ["one", "two"]]})
    assert candidates("choice", options, seen) == [["A", "B", "C"], ["A", "B"]]


def test_of_equally_likely_candidates_the_first_is_taken(demo):
    vlm, processor = demo
    questions = vqa_questions("shapes", "test", 2)
    assert rank(vlm, processor, questions, [["red", "red"], ["no"]], batch_size=4, description="test") == ["red", "no"]
