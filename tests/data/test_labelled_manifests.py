"""Manifests of labelled pictures: parquet files laid out as on the Hub, drawn sets, and every way in which one can be wrong."""

import pytest
import torch
from datasets import Value
from labelled import manifest_of, numbers

from vla_tune.data.labelled_images import labelled_images
from vla_tune.data.manifests import LabelledManifest, parse_manifest
from vla_tune.errors import UserError
from vla_tune.vqa.dataset import vqa_questions

# Parquet files.


def test_parquet_files_with_two_splits(tmp_path):
    name = manifest_of(tmp_path, classes={"River": "a river", "SeaLake": "a lake"})
    train, test = labelled_images(name, "train"), labelled_images(name, "test")
    assert test.classes == ["a river", "a lake"]
    assert sorted(numbers(train.images)) == list(range(20))
    assert sorted(numbers(test.images)) == list(range(20, 30))
    assert all(row["label"] == 1 - number % 2 for number, row in zip(numbers(test.images), test.images, strict=True))


def test_classes_of_parquet_files_may_be_left_out(tmp_path):
    assert labelled_images(manifest_of(tmp_path / "named"), "test").classes == ["river", "sea lake"]
    nested = manifest_of(tmp_path / "nested", columns={"image": "img", "label": "nested.kind"})
    assert labelled_images(nested, "test").classes == ["kind 0", "kind 1"]
    labels = labelled_images(manifest_of(tmp_path / "few", Value("string"), [f"kind {n}" for n in range(19)]), "test")
    assert len(labels.classes) == 19  # those of train too
    assert labelled_images(manifest_of(tmp_path / "bare", Value("int64"), [7, 10]), "test").classes == ["7", "10"]


def test_a_number_without_a_name_is_a_place_in_the_classes(tmp_path):
    words = {"River": "a river", "SeaLake": "a lake"}
    test = labelled_images(manifest_of(tmp_path / "places", Value("int64"), [0, 1], classes=words), "test")
    assert [row["label"] for row in test.images] == [number % 2 for number in numbers(test.images)]
    words = {"1": "the first", "0": "the other"}
    test = labelled_images(manifest_of(tmp_path / "numbers", Value("int64"), [0, 1], classes=words), "test")
    assert [row["label"] for row in test.images] == [1 - number % 2 for number in numbers(test.images)]


def test_one_split_is_cut_at_random_by_a_seed(tmp_path):
    whole = {"train": "data/*.parquet", "test": "data/*.parquet"}
    parts = {
        (seed, split): numbers(labelled_images(manifest_of(tmp_path, split_seed=seed, **whole), split).images)
        for seed in (42, 43)
        for split in ("train", "test")
    }
    assert [len(part) for part in parts.values()] == [24, 6, 24, 6]
    assert sorted(parts[42, "train"] + parts[42, "test"]) == list(range(30))
    assert set(parts[42, "test"]) != set(parts[43, "test"])
    stored = [*range(20, 30), *range(20)]  # the order of the files' names
    expected = torch.utils.data.random_split(stored, [24, 6], generator=torch.Generator().manual_seed(42))
    assert set(parts[42, "train"]) == set(expected[0])
    assert set(parts[42, "test"]) == set(expected[1])


def test_from_the_hub_only_the_files_of_the_split_are_fetched(monkeypatch, tmp_path):
    asked = []
    classes = {"SeaLake": "a lake", "River": "a river"}
    name = manifest_of(tmp_path, dataset="some/body", revision="abc", classes=classes)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *given, **named: asked.append((given, named)) or str(tmp_path))
    assert len(labelled_images(name, "test").images) == 10
    assert asked == [(("some/body",), {"repo_type": "dataset", "revision": "abc", "allow_patterns": ["data/test-*.parquet"]})]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": {"image": "image", "label": "kind"}}, r"columns\.image: .* has no column 'image'; it has img, kind, nested"),
        ({"columns": {"image": "img", "label": "label"}}, r"columns\.label: .* has no column 'label'"),
        ({"columns": {"image": "kind", "label": "kind"}}, r"columns\.image: 'kind' of .* holds no pictures"),
        ({"columns": {"image": "img", "label": "nested"}}, r"columns\.label: 'nested' of .* neither a text nor a whole number"),
        ({"test": "data/val-*.parquet"}, r"no file fits data/val-\*\.parquet"),
        ({"classes": {"River": "a river", "Sealake": "a lake"}}, "label 'SeaLake' is none of them; did you mean 'Sealake'"),
    ],
)
def test_wrong_parquet_files_name_the_key(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        labelled_images(manifest_of(tmp_path, **changes), "test")


def test_rows_without_a_label(tmp_path):
    with pytest.raises(UserError, match="a row without a label"):
        labelled_images(manifest_of(tmp_path / "one", values=["SeaLake", None]), "test")
    words = {"River": "a river"}
    with pytest.raises(UserError, match="label '1' is none of them; they are 1, counted from 0"):
        labelled_images(manifest_of(tmp_path / "two", Value("int64"), [0, 1], classes=words), "test")


# Manifests.

DRAWN = {"kind": "classification", "generator": "drawings", "family": "shapes", "license": "MIT"}
READ = {"kind": "classification", "dataset": "some/body", "train": "a-*", "test": "b-*", "license": "MIT"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generator": "drawing"}, "did you mean 'drawings'"),
        ({"family": "shape"}, "family: 'shape' is unknown; did you mean 'shapes'"),
        ({"per_class": {"train": 0}}, r"per_class\.train=0: must be at least 1"),
        ({"per_class": {"valid": 3}}, r"unknown key 'per_class\.valid'"),
        ({"dataset": "some/body"}, "generator, dataset: give one of them"),
        ({"train": "a-*"}, "train: it says nothing beside generator: drawings"),
        ({"templates": ["a photo."]}, r"templates: the class has to stand in 'a photo\.' once, as \{\}"),
        ({"templates": ["a {} of {x}"]}, r"templates: the class has to stand in 'a \{\} of \{x\}' once"),
        ({"templates": ["a {"]}, "and no other braces"),
        ({"templates": []}, "templates: at least one is needed"),
        ({"classes": {"ring": "round", "circle": "round"}}, "classes: 'round' stands for two labels"),
    ],
)
def test_wrong_drawn_sets_name_the_key(change, message):
    assert isinstance(parse_manifest(DRAWN, "a file"), LabelledManifest)
    with pytest.raises(UserError, match=message):
        parse_manifest({**DRAWN, **change}, "a file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": ""}, "generator, dataset: give one of them"),
        ({"mirrored": True}, "mirrored: it says nothing beside dataset"),
        ({"test": ""}, "test: name the parquet files"),
        ({"test": "a-*"}, "split_seed: it is needed where train and test are the same files, and only there"),
        ({"split_seed": 3}, "split_seed: it is needed"),
        ({"dataset": "mine.zip"}, r"train: it says nothing beside a dataset with index\.csv"),
        ({"columns": {"labels": "label"}}, r"did you mean 'columns\.label'"),
        ({"license": None}, "license"),
    ],
)
def test_wrong_read_sets_name_the_key(change, message):
    assert isinstance(parse_manifest(READ, "a file"), LabelledManifest)
    with pytest.raises(UserError, match=message):
        parse_manifest({**READ, **change}, "a file")


def test_other_manifests_and_splits_are_refused():
    with pytest.raises(UserError, match="shapes: it describes vqa, not labelled pictures"):
        labelled_images("shapes", "train")
    with pytest.raises(UserError, match="split: 'anchor' is neither"):
        labelled_images("drawn-shapes", "anchor")
    with pytest.raises(UserError, match="it describes classification, not questions"):
        vqa_questions("drawn-shapes", "test")
