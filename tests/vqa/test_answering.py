"""Answers come from `generate` on chat inputs, whatever the batch; the shipped VLM's skill."""

import numpy as np
import pytest
import torch

from vla_tune.resources import cache_folder, demo_vlm
from vla_tune.vlm.answering import answer
from vla_tune.vlm.loading import load_vlm
from vla_tune.vlm.prompts import prompts_of
from vla_tune.vqa.answering import cached_answers
from vla_tune.vqa.dataset import vqa_questions
from vla_tune.vqa.scoring import accuracy_by_type, blind_answers, exact_match

SETTINGS = {"max_new_tokens": 6, "description": "test"}


@pytest.fixture(scope="module")
def loaded():
    return load_vlm(str(demo_vlm()))


def test_answers_do_not_depend_on_the_batch(loaded):
    vlm, processor = loaded
    questions = vqa_questions("shapes", "test", 18)
    alone = answer(vlm, processor, questions, batch_size=1, **SETTINGS)
    assert len(alone) == 18
    assert answer(vlm, processor, questions, batch_size=7, **SETTINGS) == alone
    assert answer(vlm, processor, questions, batch_size=18, **SETTINGS) == alone


def test_answers_equal_generate_by_hand(loaded):
    vlm, processor = loaded
    row = vqa_questions("shapes", "test", 1)[0]
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["question"]}]}
    prompt = processor.apply_chat_template([message], add_generation_prompt=True)
    inputs = processor(text=prompt, images=[row["image"]], return_tensors="pt")
    with torch.no_grad():
        tokens = vlm.generate(**inputs, max_new_tokens=6, do_sample=False)
    prompt_text, whole = (processor.decode(ids, skip_special_tokens=True) for ids in (inputs["input_ids"][0], tokens[0]))
    expected = whole.removeprefix(prompt_text).strip()
    assert answer(vlm, processor, vqa_questions("shapes", "test", 1), batch_size=1, **SETTINGS) == [expected]


def test_padding_is_on_the_left_and_the_mask_holds_picture_and_question_alone(loaded):
    _, processor = loaded
    texts = ["count the objects.", "is the purple triangle right of the orange square?"]
    questions = vqa_questions("shapes", "test", 2)
    inputs = prompts_of(processor).inputs(questions["image"][:], texts)
    assert inputs["attention_mask"][0, 0] == 0
    assert inputs["attention_mask"][:, -1].all()
    mask = prompts_of(processor).image_and_question(inputs)
    for ids, kept, text in zip(inputs["input_ids"], mask, texts, strict=True):
        expected = [processor.image_token_id] * 16 + processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids[kept].tolist() == expected


def test_cached_answers_are_not_asked_again(loaded, monkeypatch):
    vlm, processor = loaded
    questions = vqa_questions("shapes", "test", 6)
    first = cached_answers(vlm, processor, questions, backbone="weights", batch_size=3, **SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr(vlm, "generate", lambda **_: pytest.fail("asked again"))
        assert cached_answers(vlm, processor, questions, backbone="weights", batch_size=2, **SETTINGS) == first
        with pytest.raises(pytest.fail.Exception):
            cached_answers(vlm, processor, questions, backbone="other weights", batch_size=3, **SETTINGS)
        with pytest.raises(pytest.fail.Exception):
            cached_answers(vlm, processor, vqa_questions("shapes", "test", 12), backbone="weights", batch_size=3, **SETTINGS)
    for file in (cache_folder() / "answers").glob("*/answers.json"):
        file.write_text(file.read_text()[:5])
    assert cached_answers(vlm, processor, questions, backbone="weights", batch_size=3, **SETTINGS) == first


def test_the_shipped_vlm_has_skill(loaded):
    """A claim about the shipped weights, not about the code: 85 % on pictures it never saw, and every type above guessing."""
    vlm, processor = loaded
    questions, seen = vqa_questions("shapes", "test", 300), vqa_questions("shapes", "anchor")
    known = zip(seen["type"], seen["question"], seen["answers"], strict=True)
    guesses = blind_answers(known, zip(questions["type"], questions["question"], strict=True))
    answers = answer(vlm, processor, questions, batch_size=100, **SETTINGS)
    score, blind = (
        np.array([exact_match(given, wanted) for given, wanted in zip(given_by, questions["answers"], strict=True)])
        for given_by in (answers, guesses)
    )
    assert score.mean() >= 0.85
    guessed = accuracy_by_type(questions["type"], blind)
    assert all(right > guessed[kind] + 0.15 for kind, right in accuracy_by_type(questions["type"], score).items())
