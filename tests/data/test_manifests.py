import pytest

from vla_tune.data.manifests import BenchmarkManifest, DemonstrationsManifest, VqaManifest, load_manifest, manifest_digest, parse_manifest
from vla_tune.errors import UserError

GOOD = {"kind": "demonstrations", "tasks": ["reach-v3"], "episodes_per_task": 2, "license": "Apache-2.0"}


def test_shipped_manifests_are_of_their_kind():
    assert isinstance(load_manifest("shapes"), VqaManifest)
    demo = load_manifest("metaworld-demo")
    assert isinstance(demo, DemonstrationsManifest)
    assert len(demo.tasks) >= 4


def test_unknown_manifest_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'shapes'"):
        load_manifest("shape")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "vq"}, "did you mean 'vqa'"),
        ({"kind": None}, "kind"),
        ({"generator": "metawrld"}, "did you mean 'metaworld'"),
        ({"tasks": []}, "at least one task"),
        ({"episodes_per_task": 0}, "episodes_per_task=0"),
        ({"episodes_per_task": "many"}, "must be a whole number"),
        ({"episodes": 3}, "unknown key 'episodes'"),
    ],
)
def test_wrong_manifests_name_the_key(change, message):
    with pytest.raises(UserError, match=message):
        parse_manifest({**GOOD, **change}, "a file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"types": ["color", "shape", "count"]}, "did you mean 'colour'"),
        ({"types": ["shape", "count"]}, "three different"),
        ({"types": ["shape", "shape", "shape"]}, "three different"),
        ({"style": "noisy"}, "did you mean 'noise'"),
    ],
)
def test_wrong_questions_name_the_key(change, message):
    with pytest.raises(UserError, match=message):
        parse_manifest({"kind": "vqa", "license": "Apache-2.0", **change}, "a file")


BENCHMARK = {"kind": "vqa-benchmark", "dataset": "some/body", "anchor": "a-*", "test": "t-*", "license": "MIT"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "vqa2"}, "metric: 'vqa2' is unknown; did you mean 'vqa'"),
        ({"prompt": "Answer."}, r"prompt: the question has to stand in it, as \{question\}"),
        ({"prompt": "{question} {choices}"}, "a multiple choice takes both"),
        ({"metric": "choice", "columns": {"choices": "options"}}, "a multiple choice takes both"),
        ({"prompt": "{question} {choices}", "columns": {"choices": "options"}}, "metric=exact: with columns.choices it must be choice"),
        ({"pictures": "p-*"}, r"columns\.image_id: pictures are found by it"),
        ({"test": ""}, "test: name the parquet files"),
        ({"columns": {"anwsers": "answer"}}, r"unknown key 'columns\.anwsers'; did you mean 'columns\.answers'"),
        ({"revison": "main"}, "did you mean 'revision'"),
    ],
)
def test_wrong_benchmarks_name_the_key(change, message):
    assert isinstance(parse_manifest(BENCHMARK, "a file"), BenchmarkManifest)
    with pytest.raises(UserError, match=message):
        parse_manifest({**BENCHMARK, **change}, "a file")


def test_missing_licence_is_an_error():
    with pytest.raises(UserError, match="license"):
        parse_manifest({key: value for key, value in GOOD.items() if key != "license"}, "a file")


def test_digest_follows_the_content():
    one, two = parse_manifest(GOOD, "a file"), parse_manifest({**GOOD, "seed": 1}, "a file")
    assert manifest_digest(one) == manifest_digest(parse_manifest(GOOD, "another file"))
    assert manifest_digest(one) != manifest_digest(two)
