"""Labelled pictures from wherever they come: drawn, folders and zips with `index.csv`, and real ones."""

import csv
import shutil
import zipfile
from collections import Counter

import numpy as np
import pytest
import yaml
from datasets import Image as ImageFeature
from labelled import content, folder_of, numbers, picture, rows_of, zip_of
from PIL import Image

from vla_tune.data.drawings import FAMILIES, drawing
from vla_tune.data.labelled_images import labelled_images, words_of
from vla_tune.data.manifests import LabelledManifest, load_manifest
from vla_tune.errors import UserError
from vla_tune.resources import available
from vla_tune.stages.current import sources

BENCHMARKS = {
    "aircraft": 100,
    "caltech101": 101,
    "cifar100": 100,
    "dtd": 47,
    "eurosat": 10,
    "flowers": 102,
    "food": 101,
    "mnist": 10,
    "oxford-pet": 37,
    "stanford-cars": 196,
    "sun397": 397,
}
"""MTIL's data sets and the number of their classes."""
REAL = {
    "eurosat": (10, 1500, 600),
    "mnist": (10, 2000, 800),
    "gtsrb43": (43, 982, 516),
    "dtd10": (10, 800, 400),
    "cifar10": (10, 3000, 1000),
    "trash6": (6, 540, 240),
}
"""Classes, pictures of train and of test."""


# Shipped manifests.


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_shipped_benchmarks_have_all_their_classes_and_say_what_they_take(name):
    manifest = load_manifest(f"mtil-{name}")
    assert isinstance(manifest, LabelledManifest)
    assert len(manifest.classes) == BENCHMARKS[name]
    assert manifest.download_mb >= 18
    assert manifest.revision == "main" or len(manifest.revision) == 40
    assert manifest.dataset.count("/") == 1
    assert (manifest.split_seed == 42) == (name in ("caltech101", "eurosat", "sun397"))
    assert len(manifest.templates) >= {"aircraft": 2, "dtd": 8, "eurosat": 3, "stanford-cars": 3, "sun397": 2, "cifar100": 5}.get(name, 1)


def test_every_benchmark_of_mtil_is_shipped():
    assert {name for name in available("data_manifests") if name.startswith("mtil-")} == {f"mtil-{name}" for name in BENCHMARKS}


def test_without_network_a_benchmark_says_what_it_would_fetch(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"timm/eurosat-rgb .*cannot be fetched.*92 MB.*data/\*\.parquet"):
        labelled_images("mtil-eurosat", "train")


# Drawn.


@pytest.mark.parametrize("name", ["drawn-shapes", "drawn-signs", "drawn-signs-mirrored", "drawn-textures"])
def test_drawn_sets_hold_so_many_pictures_of_each_class(name):
    family = load_manifest(name).family
    for split, count in (("train", 40), ("test", 20)):
        drawn = labelled_images(name, split)
        assert Counter(drawn.images["label"]) == dict.fromkeys(range(len(FAMILIES[family])), count)
        assert drawn.classes == sorted(FAMILIES[family])
        assert drawn.images.column_names == ["image", "label"]
        assert drawn.templates == load_manifest(name).templates


def test_drawn_sets_are_drawn_alike_again(cache):
    before = labelled_images("drawn-shapes", "test")
    for folder in (cache / "drawings").glob("shapes-*"):
        shutil.rmtree(folder)
    again = labelled_images("drawn-shapes", "test")
    assert content(before) == content(again)
    label = again.classes[again.images[0]["label"]]
    own = [np.asarray(drawing("shapes", label, 1, "test", number)) for number in range(20)]
    assert any(np.array_equal(np.asarray(again.images[0]["image"]), one) for one in own)


def test_a_damaged_cache_is_drawn_again(cache):
    before = content(labelled_images("drawn-shapes", "test"))
    (file,) = (cache / "drawings").glob("shapes-*-test-20/pictures.parquet")
    file.write_bytes(b"damaged")
    assert content(labelled_images("drawn-shapes", "test")) == before


def test_splits_share_no_picture():
    train, test = ({one["image"].tobytes() for one in labelled_images("drawn-signs", split).images} for split in ("train", "test"))
    assert (len(train), len(test)) == (400, 200)
    assert not train & test


def test_mirrored_pictures_are_the_others_flipped_under_the_same_labels():
    one, other = labelled_images("drawn-signs", "test"), labelled_images("drawn-signs-mirrored", "test")
    assert one.images["label"][:] == other.images["label"][:]
    for row, flipped in zip(one.images, other.images, strict=True):
        np.testing.assert_array_equal(np.asarray(row["image"])[:, ::-1], np.asarray(flipped["image"]))
    assert content(one) != content(other)


def test_the_first_pictures_are_of_all_classes():
    assert len(set(labelled_images("drawn-textures", "train").images[:60]["label"])) == 12


# Folders and zips.


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_and_a_zip_with_an_index(tmp_path, packed):
    name = folder_of(tmp_path / "mine", rows_of())
    train, test = (labelled_images(zip_of(name) if packed else name, split) for split in ("train", "test"))
    assert train.classes == test.classes == ["river", "sea lake", "annual crop"]
    assert (len(train.images), len(test.images)) == (16, 8)
    assert train.templates == ["a photo of a {}."]
    assert set(numbers(train.images)) == set(range(16))
    for number, row in zip(numbers(test.images), test.images, strict=True):
        expected = Image.open(tmp_path / "mine" / "all" / f"{number}.png").convert("RGB")
        assert row["image"].mode == "RGB"
        np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(expected))
        assert test.classes[row["label"]] == ["sea lake", "annual crop", "river"][number % 3]


def test_a_zip_holds_what_its_folder_does_and_other_pictures_or_words_are_told(tmp_path):
    name = folder_of(tmp_path / "mine", rows_of())
    before = content(labelled_images(name, "test"))
    assert content(labelled_images(zip_of(name), "test")) == before
    assert content(labelled_images(name, "train")) != before
    manifest = {"kind": "classification", "dataset": name, "templates": ["a sketch of a {}."], "license": "MIT"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(manifest))
    assert content(labelled_images(str(tmp_path / "mine.yaml"), "test")) != before
    picture(99).save(tmp_path / "mine" / "all" / "20.png")
    assert content(labelled_images(name, "test")) != before


def test_a_stage_is_made_again_where_a_folders_pictures_changed(tmp_path):
    name = folder_of(tmp_path / "mine", rows_of())
    config = {"policy": {}, "stream": {"tasks": [{"name": "mine", "manifest": "mine"}], "reference": name, "folder": str(tmp_path)}}
    before = {stage: sources(stage, config) for stage in ("train", "eval-vqa", "eval-rollout")}
    assert before == {stage: sources(stage, config) for stage in before}
    picture(99).save(tmp_path / "mine" / "all" / "0.png")
    for stage in ("train", "eval-vqa"):
        after = sources(stage, config)
        assert (
            {key for key, digest in before[stage].items() if digest != after[key]}
            == set(after)
            == {
                "stream.tasks.mine.manifest",
                "stream.reference.manifest",
            }
        )
    assert before["eval-rollout"] == {}


def test_a_manifest_words_the_classes_of_a_folder_and_orders_them(tmp_path):
    folder = folder_of(tmp_path / "mine", rows_of())
    classes = {"River": "a river", "SeaLake": "a lake", "annual_crop": "a field", "Forest": "a forest"}
    manifest = {"kind": "classification", "dataset": folder, "classes": classes, "license": "MIT"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False))
    test = labelled_images(str(tmp_path / "mine.yaml"), "test")
    assert test.classes == list(classes.values())
    assert [row["label"] for row in test.images] == [[1, 2, 0][number % 3] for number in numbers(test.images)]


def test_labels_that_are_numbers_are_sorted_by_size(tmp_path):
    name = folder_of(tmp_path / "mine", rows_of(labels=("10", "9", "2")))
    assert labelled_images(name, "train").classes == ["2", "9", "10"]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"index\.csv: there is no column 'file'; it has none"),
        ("file,label\nall/0.png,a\n", r"no column 'split'; it has file, label"),
        ("file,label,split\nall/0.png,a,dev\n", "row 1: file and label must be given, and split be train or test"),
        ("file,label,split\nall/0.png,,test\n", "row 1: file and label must be given"),
        ("file,label,split\nall/0.png,a,test\nall/0.png,b,test\n", r"row 2: all/0\.png is listed twice"),
        ("file,label,split\nall/99.png,a,test\n", r"row 1: there is no file 'all/99\.png'"),
        ("file,label,split\nindex.csv,a,test\n", r"index\.csv'?: no picture that can be read"),
        ("file,label,split\nall/0.png,a,train\n", "there is no picture for the test split"),
        ("file,label,split\nall/0.png,a_b,test\nall/1.png,a b,test\n", "the labels 'a b' and 'a_b' read the same"),
        ('file,label,split\n"all/0.png,a,test\n', "not readable as a table"),
    ],
)
def test_a_wrong_index_says_where(tmp_path, text, message, packed):
    name = folder_of(tmp_path / "mine", [])
    (tmp_path / "mine" / "index.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        labelled_images(zip_of(name) if packed else name, "test")


def test_what_is_no_index_and_no_zip(tmp_path):
    folder_of(tmp_path / "mine", rows_of())
    with pytest.raises(UserError, match=r"holds no qa\.jsonl .* and no index\.csv"):
        load_manifest(str(tmp_path / "mine" / "all"))
    with pytest.raises(UserError, match="there is no file or folder"):
        load_manifest(str(tmp_path / "none.zip"))
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(UserError, match=r"text\.zip: not readable as a zip"):
        labelled_images(str(tmp_path / "text.zip"), "train")
    with zipfile.ZipFile(tmp_path / "deep.zip", "w") as packed:
        packed.writestr("mine/index.csv", "file,label,split\n")
    with pytest.raises(UserError, match=r"holds no index\.csv at its top"):
        labelled_images(str(tmp_path / "deep.zip"), "train")
    manifest = {"kind": "classification", "dataset": str(tmp_path / "none.zip"), "license": "MIT"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(manifest))
    with pytest.raises(UserError, match=r"dataset: there is no file .*none\.zip"):
        labelled_images(str(tmp_path / "mine.yaml"), "train")


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("AnnualCrop", "annual crop"),
        ("speed limit 20", "speed limit 20"),
        ("ice_cream", "ice cream"),
        ("Boeing 747", "boeing 747"),
        ("MD-80", "md-80"),
    ],
)
def test_labels_as_words(label, words):
    assert words_of(label) == words


# Real data.


@pytest.mark.parametrize("name", REAL)
def test_real_sets(third_party_data, name):
    file = third_party_data / f"{name}.zip"
    if not file.is_file():
        pytest.skip(f"{file} is missing")
    train, test = labelled_images(str(file), "train"), labelled_images(str(file), "test")
    assert (len(train.classes), len(train.images), len(test.images)) == REAL[name]
    assert set(train.images["label"]) == set(test.images["label"]) == set(range(len(train.classes)))
    assert train.classes == test.classes
    for row in (*train.images.select(range(20)), *test.images.select(range(20))):
        assert row["image"].mode == "RGB"
        assert row["image"].getbbox() is not None


def test_real_pictures_carry_the_labels_of_their_index(third_party_data):
    file = third_party_data / "eurosat.zip"
    if not file.is_file():
        pytest.skip(f"{file} is missing")
    images = labelled_images(str(file), "test")
    assert images.classes[-1] == "sea lake"
    with zipfile.ZipFile(file) as packed:
        rows = list(csv.DictReader(packed.read("index.csv").decode().splitlines()))
        labels = {packed.read(row["file"]): words_of(row["label"]) for row in rows if row["split"] == "test"}
    stored = images.images.cast_column("image", ImageFeature(decode=False))
    assert all(labels[row["image"]["bytes"]] == images.classes[row["label"]] for row in stored)
