"""The generated questions: right, balanced, disjoint, the same every time."""

import re
from collections import Counter

import numpy as np
import pytest

from vla_tune.data.scenes import COLOURS, SHAPES, picture_hash, sample_scene
from vla_tune.errors import UserError
from vla_tune.resources import cache_folder
from vla_tune.vqa.dataset import generate, questions_digest, vqa_questions
from vla_tune.vqa.questions import ANSWERS, GENERATOR

RELATIONS = {
    "left of": lambda a, b: b.x - a.x,
    "right of": lambda a, b: a.x - b.x,
    "above": lambda a, b: b.y - a.y,
    "below": lambda a, b: a.y - b.y,
}


def matching(scene, words):
    """The objects that all of the words are true of."""
    return [item for item in scene.objects if all(word in (item.colour, item.shape, item.size) for word in words)]


def oracle(scene, text):  # noqa: PLR0911 - a return a type of question
    """The answer, read off the scene by the question's words alone; the question must have just one answer."""
    if text in ("how many objects are there?", "count the objects."):
        return str(len(scene.objects))
    if found := re.fullmatch(r"how many (\w+) objects are there\?", text):
        return str(len(matching(scene, found.groups())))
    if found := re.fullmatch(r"how many (\w+) are there\?", text):
        (shape,) = (shape for shape in SHAPES if found[1] in (f"{shape}s", f"{shape}es"))
        return str(len(matching(scene, [shape])))
    if found := re.fullmatch(r"what color is the (.+)\?", text):
        (item,) = matching(scene, found[1].split())
        return item.colour
    if found := re.fullmatch(r"what shape is the (.+) object\?", text):
        (item,) = matching(scene, found[1].split())
        return item.shape
    if found := re.fullmatch(r"is there an? (\w+) (\w+)\?", text):
        assert found[1] in COLOURS
        assert found[2] in SHAPES
        return "yes" if matching(scene, found.groups()) else "no"
    found = re.fullmatch(r"is the (\w+ \w+) (left of|right of|above|below) the (\w+ \w+)\?", text)
    assert found, f"the oracle does not know the question: {text}"
    (first,), (second,) = matching(scene, found[1].split()), matching(scene, found[3].split())
    gap = RELATIONS[found[2]](first, second)
    assert abs(gap) >= 8
    return "yes" if gap > 0 else "no"


@pytest.mark.parametrize("split", ["anchor", "test"])
def test_answers_equal_an_independent_oracle(split):
    asked = [(scene, question) for scene, questions in generate(GENERATOR, 0, split, 150) for question in questions]
    assert len(asked) == 450
    for scene, question in asked:
        assert oracle(scene, question.text) == question.answer, (scene, question)


@pytest.mark.parametrize("split", ["anchor", "test"])
def test_types_are_even_and_answers_balanced(split):
    questions = vqa_questions("shapes", split)
    assert Counter(questions["type"]) == dict.fromkeys(ANSWERS, 500)
    assert len(set(questions["question_id"])) == 3000
    assert set(Counter(questions["image_id"]).values()) == {3}
    pairs = Counter(zip(questions["type"], (answers[0] for answers in questions["answers"]), strict=True))
    for kind, answers in ANSWERS.items():
        counts = [pairs[kind, answer] for answer in answers]
        assert sum(counts) == 500
        assert max(counts) - min(counts) <= 3, (kind, counts)


def test_a_prefix_is_a_smaller_set_of_the_same_kind():
    whole, part = vqa_questions("shapes", "test"), vqa_questions("shapes", "test", 60)
    assert part["question_id"] == whole["question_id"][:60]
    assert len(set(part["image_id"])) == 20
    assert Counter(part["type"]) == dict.fromkeys(ANSWERS, 10)


def test_pictures_of_the_splits_are_disjoint():
    ids = {}
    for split in ("anchor", "test"):
        questions = vqa_questions("shapes", split)
        ids[split] = set(questions["image_id"])
        row = questions[0]
        assert row["image"].size == (64, 64)
        assert picture_hash(row["image"]).startswith(row["image_id"])
    assert not ids["anchor"] & ids["test"]
    assert not (ids["anchor"] | ids["test"]) & {picture_hash(sample_scene(0, "train", i).draw())[:16] for i in range(500)}
    # Training leaves out the pictures of these scenes by hash, so all pictures of a split must come from among them.
    excluded = {picture_hash(sample_scene(0, "test", i).draw())[:16] for i in range(GENERATOR.scenes)}
    assert ids["test"] <= excluded


def test_the_same_every_time():
    one, other = list(generate(GENERATOR, 3, "test", 20)), list(generate(GENERATOR, 3, "test", 20))
    assert one == other
    assert one != list(generate(GENERATOR, 4, "test", 20))


def test_a_damaged_set_is_made_again(capsys):
    before = vqa_questions("shapes", "test", 30)
    (file,) = cache_folder().glob("questions/shapes-[0-9]*-test/questions.parquet")
    file.write_bytes(file.read_bytes()[:-100])
    after = vqa_questions("shapes", "test", 30)
    assert "damaged" in capsys.readouterr().err
    assert questions_digest(after) == questions_digest(before)
    assert not [folder for folder in file.parent.parent.iterdir() if folder.name.count(".") > 1], "a temporary folder is left"


def test_too_many_questions_names_the_key():
    with pytest.raises(UserError, match=r"vqa\.questions=3001.*3000"):
        vqa_questions("shapes", "test", 3001)
    with pytest.raises(UserError, match=r"anchor\.samples=4000"):
        vqa_questions("shapes", "anchor", 4000)


def test_a_manifest_of_demonstrations_is_refused():
    with pytest.raises(UserError, match=r"vqa\.manifest=metaworld-demo"):
        vqa_questions("metaworld-demo", "test", 6)


def test_a_manifest_may_ask_three_types_only_and_through_a_noisy_camera():
    plain, three, noise = (vqa_questions(name, "anchor") for name in ("shapes", "shapes-three", "shapes-noise"))
    assert set(three["type"]) == {"colour", "shape", "existence"}
    assert Counter(three["type"]) == dict.fromkeys(("colour", "shape", "existence"), 1000)
    assert noise["question"] == plain["question"]
    assert noise["answers"] == plain["answers"]
    assert not set(noise["image_id"]) & set(plain["image_id"])
    difference = np.asarray(noise[0]["image"], dtype=float) - np.asarray(plain[0]["image"], dtype=float)
    assert 10 < difference.std() < 25
