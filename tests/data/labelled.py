"""Small sets of labelled pictures as folders, zips and parquet files; every picture's first pixel is its number."""

from __future__ import annotations

import csv
import io
import shutil

import numpy as np
import yaml
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image


def picture(number, mode="RGB", size=(8, 6)):
    """A picture whose first pixel's red is its number."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    pixels[0, 0] = number
    return Image.fromarray(pixels).convert(mode)


def png(number):
    stream = io.BytesIO()
    picture(number).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def numbers(images):
    """Which pictures these are."""
    return [np.asarray(row["image"])[0, 0, 0] for row in images]


def rows_of(count=24, labels=("SeaLake", "annual_crop", "River")):
    return [
        {"file": f"all/{n}.png", "label": labels[n % len(labels)], "split": "train" if n < 2 * count // 3 else "test"} for n in range(count)
    ]


def folder_of(root, rows, pictures=24):
    (root / "all").mkdir(parents=True)
    for number in range(pictures):
        picture(number, ("RGB", "L", "RGBA")[number % 3], (8 + number, 6)).save(root / "all" / f"{number}.png")
    with (root / "index.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["file", "label", "split"])
        writer.writeheader()
        writer.writerows(rows)
    return str(root)


def zip_of(folder):
    return shutil.make_archive(folder, "zip", folder)


def manifest_of(root, label=None, values=None, **changes):
    """Twenty pictures in a parquet file for train and ten in one for test, labelled by turns; every second name is a class of two."""
    (root / "data").mkdir(parents=True, exist_ok=True)
    label = label or ClassLabel(names=["SeaLake", "River"])
    values = values or ["SeaLake", "River"]
    features = Features({"img": ImageFeature(), "kind": label, "nested": {"kind": Value("string")}})
    for split, first, count in (("train", 0, 20), ("test", 20, 10)):
        rows = [{"img": png(n), "kind": values[n % len(values)], "nested": {"kind": f"kind {n % 2}"}} for n in range(first, first + count)]
        table = Dataset.from_list(rows, features=features)
        table.to_parquet(root / "data" / f"{split}-0.parquet")
    manifest = {
        "kind": "classification",
        "dataset": str(root),
        "train": "data/train-*.parquet",
        "test": "data/test-*.parquet",
        "columns": {"image": "img", "label": "kind"},
        "license": "MIT",
        **changes,
    }
    (root / "mine.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False))
    return str(root / "mine.yaml")


def content(known):
    """All that a split holds, to be compared."""
    return known.classes, known.templates, [(row["image"].tobytes(), row["label"]) for row in known.images]
