"""Study files: what is accepted, what a plan makes of them, and that every mistake gets one message."""

from pathlib import Path

import pytest

from vla_tune.config import METHODS
from vla_tune.errors import UserError
from vla_tune.resources import available
from vla_tune.studies import Study, in_order, load_study, make_plan, narrowed

OUT = Path("out")


@pytest.fixture(scope="module")
def shipped():
    return {name: make_plan(load_study(name), OUT) for name in available("studies")}


def test_every_shipped_study_can_be_planned(shipped):
    for name, plan in shipped.items():
        study = load_study(name)
        assert study.name == name
        assert len(plan.configs) == study.seeds * len(study.variants)
        if not name.startswith("stream-"):
            assert (plan.default or "").startswith("subspace"), name


def test_what_the_shipped_studies_promise(shipped):
    assert shipped["reproduce"].labels == ["full", "frozen", "aegis", "subspace"]
    frontier, tuning = shipped["frontier"], shipped["tuning"]
    assert {config.method.name for study in (frontier, tuning) for config in study.configs.values()} == set(METHODS)
    assert {seed for _, seed in frontier.configs} == {0, 1, 2}
    assert {config.rollout.episodes for config in frontier.configs.values()} == {200}
    assert frontier.configs["wise-ft-0.7", 2].method.wise_ft.path == "out/full/seed-2/train"
    assert tuning.stages == ("train", "eval-vqa")
    assert {config.train.steps for config in tuning.configs.values()} == {400}


def test_overrides_go_from_the_study_to_the_command_line_to_the_variant():
    study = Study("mine", overrides=["train.steps=5", "train.lr=1", "seed=3"], variants={"own": ["train.lr=3"], "plain": []}, seeds=2)
    plan = make_plan(study, OUT, ["train.steps=6", "train.lr=2"])
    assert list(plan.configs) == [("own", 3), ("plain", 3), ("own", 4), ("plain", 4)]
    assert [(config.seed, config.train.steps, config.train.lr) for config in plan.configs.values()] == [
        (3, 6, 3.0),
        (3, 6, 2.0),
        (4, 6, 3.0),
        (4, 6, 2.0),
    ]
    assert plan.default == "plain"
    assert plan.folder("own", 4) == OUT / "own" / "seed-4"


def test_names_choose_variants_and_methods():
    study = Study("mine", variants={"full": ["method.full.vlm_lr=0.5"], "other": []})
    assert narrowed(study, "lora, full").variants == {"lora": ["method.name=lora"], "full": ["method.full.vlm_lr=0.5"]}
    assert make_plan(narrowed(study, "all"), OUT).labels == list(METHODS)


def test_labels_come_after_those_they_need():
    assert in_order({"a": ["c"], "b": [], "c": ["b"]}) == ["b", "c", "a"]
    with pytest.raises(UserError, match="b needs c needs b"):
        in_order({"a": ["b"], "b": ["c"], "c": ["b"]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pipelin: demo", "did you mean 'pipeline'"),
        ("seeds: many", "seeds"),
        ("variants: {full: method.name=full}", "full"),
        ("variants: [full]", "must be a mapping"),
        ("stages: [eval-vqq]", "did you mean 'eval-vqa'"),
        ("variants: {a/b: []}", "cannot name a folder"),
        ("variants: {report: []}", "cannot name a folder"),
        ("- full", "expected a mapping"),
    ],
)
def test_a_wrong_study_is_blamed_on_its_file(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_study(str(file))
    assert str(caught.value).startswith(f"{file}:")


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (Study("mine"), "at least one variant"),
        (Study("mine", seeds=0, variants={"a": []}), "one seed"),
        (Study("mine", variants={"a": ["train.stepz=3"]}), "did you mean 'train.steps'"),
        (Study("mine", variants={"a": ["method.wise_ft.path={ful}/train"], "full": []}), r"\{ful\} is no variant.*did you mean 'full'"),
        (Study("mine", variants={"a": ["method.wise_ft.path={a}/train"]}), "a needs a"),
        (Study("mine", variants={"a": ["seed=4"]}), "mine, a: seed=4"),
        (Study("mine", variants={"a": ["anchor.path=elsewhere"]}), "leave it out"),
        (Study("mine", overrides=["train.path=elsewhere"], variants={"a": []}), "leave it out"),
        (Study("mine", pipeline="dmo", variants={"a": []}), "did you mean 'demo'"),
    ],
)
def test_a_study_that_cannot_be_run_says_why(study, message):
    with pytest.raises(UserError, match=message):
        make_plan(study, OUT)


@pytest.mark.parametrize(("names", "message"), [("ful", "did you mean 'full'"), ("", "at least one variant")])
def test_wrong_names(names, message):
    with pytest.raises(UserError, match=message):
        make_plan(narrowed(load_study("reproduce"), names), OUT)


def test_an_unknown_study_names_the_nearest():
    with pytest.raises(UserError, match="there is no shipped study 'fronteer'; did you mean 'frontier'"):
        load_study("fronteer")
