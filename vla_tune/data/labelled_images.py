"""Pictures with one label each, as columns `image` and `label`: drawn ones, folders and zips with `index.csv`, and parquet files.

The order is that of a hash of the row's number, so the first N pictures of a split are a smaller set of the same kind.
Pictures stay as they came, and are read, as RGB, when they are looked at.
"""

from __future__ import annotations

import hashlib
import io
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_tune.artifacts.store import made_once
from vla_tune.data.drawings import DRAWINGS_VERSION, FAMILIES, drawing
from vla_tune.data.indexed_pictures import SPLITS, indexed
from vla_tune.data.manifests import LabelledManifest, holds_index, load_manifest
from vla_tune.data.parquet import column_values, fetched_folder, parquet_table
from vla_tune.errors import UserError, nearest
from vla_tune.resources import cache_folder

if TYPE_CHECKING:
    from datasets import Dataset

TRAIN_SHARE = 0.8
"""Of the rows, where train and test are cut from the same files."""
DRAWN_FILE = "pictures.parquet"

type Labels = list[str] | list[int]


@dataclass(frozen=True)
class LabelledImages:
    """A split: `images` with the columns `image` (PIL, RGB) and `label` (int, a place in `classes`), the words, and the prompts.

    classes: the words for each class. templates: what a picture says, the words to be filled in for `{}`; the first is for training.
    """

    images: Dataset
    classes: list[str]
    templates: list[str]


@dataclass(frozen=True)
class _Rows:
    """What a source holds of a split: a dataset with the column `image`, a label for each, and every label there is, in order.

    labels: text, or numbers where the data name none.
    """

    pictures: Dataset
    labels: Labels
    known: list[str]


def labelled_images(manifest_name: str, split: str) -> LabelledImages:
    """All pictures of a manifest's split, `train` or `test`, drawn or fetched where missing.

    Raises:
        UserError: the manifest is not one of labelled pictures, they cannot be read or fetched, or a label is not understood.

    """
    from datasets import Dataset, Features, Value, concatenate_datasets

    from vla_tune.data.picture_column import RgbImage, check_pictures

    if split not in SPLITS:
        raise UserError(f"split: '{split}' is neither of train and test")
    manifest = load_manifest(manifest_name)
    if not isinstance(manifest, LabelledManifest):
        raise UserError(f"{manifest_name}: it describes {manifest.kind}, not labelled pictures (kind: classification)")
    rows = _rows(manifest, split)
    if not rows.labels:
        raise UserError(f"{_name(manifest)}: there is no picture for the {split} split")
    classes = manifest.classes or _worded(rows.known, manifest)
    numbers = Dataset.from_dict({"label": _numbers(rows.labels, list(classes), manifest)}, features=Features({"label": Value("int64")}))
    order = sorted(range(len(numbers)), key=lambda number: hashlib.sha256(str(number).encode()).digest())
    images = concatenate_datasets([rows.pictures, numbers], axis=1).cast_column("image", RgbImage()).select(order)
    if manifest.generator is None:
        check_pictures(images, f"{manifest_name}, {split}")
    return LabelledImages(images, list(classes.values()), manifest.templates)


def words_of(label: str) -> str:
    """A label as words in lower case: under_scores are spaces, and CamelCase falls apart."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFC", label).replace("_", " "))
    return " ".join(spaced.lower().split())


def _rows(manifest: LabelledManifest, split: str) -> _Rows:
    if manifest.generator is not None:
        return _drawn(manifest, split)
    return _from_index(manifest, split) if holds_index(manifest.dataset) else _from_parquet(manifest, split)


def _from_index(manifest: LabelledManifest, split: str) -> _Rows:
    from vla_tune.data.picture_column import picture_column

    rows, held = indexed(Path(manifest.dataset).expanduser(), split)
    labels = [row["label"] for row in rows if row["split"] == split]
    return _Rows(picture_column(held), labels, list(dict.fromkeys(row["label"] for row in rows)))


def _name(manifest: LabelledManifest) -> str:
    return manifest.dataset or f"{manifest.generator} of {manifest.family}"


def _worded(known: list[str], manifest: LabelledManifest) -> dict[str, str]:
    """The labels as they stand, sorted (numbers by size), each with its words."""
    classes = {label: words_of(label) for label in sorted(known, key=lambda label: label.zfill(9) if label.isdigit() else label)}
    words = list(classes.values())
    twice = [label for label, one in classes.items() if words.count(one) > 1]
    if twice:
        raise UserError(f"{_name(manifest)}: the labels '{twice[0]}' and '{twice[1]}' read the same; word them in a manifest's classes")
    return classes


def _numbers(labels: Labels, classes: list[str], manifest: LabelledManifest) -> list[int]:
    """Each label's place among the classes; a number without a name is a place already, unless the classes are numbers themselves."""
    numbered = all(label.isdigit() for label in classes)
    places: dict[Any, int] = {label: place for place, label in enumerate(classes)}
    if labels and isinstance(labels[0], int):
        places = {int(label): place for label, place in places.items()} if numbered else {place: place for place in places.values()}
    for label in dict.fromkeys(labels):
        if label not in places:
            known = nearest(label, classes) if isinstance(label, str) else f"they are {len(classes)}, counted from 0"
            raise UserError(f"{_name(manifest)}: classes: the label '{label}' is none of them; {known}")
    return [places[label] for label in labels]


# Drawn.


def _drawn(manifest: LabelledManifest, split: str) -> _Rows:
    """Drawn once and kept under the cache folder; classes take turns."""
    import pyarrow.parquet as pq

    from vla_tune.data.picture_column import picture_column

    count: int = getattr(manifest.per_class, split)
    look = "-mirrored" if manifest.mirrored else ""
    key = f"{manifest.family}{look}-{DRAWINGS_VERSION}-seed-{manifest.seed}-{split}-{count}"
    file = made_once(cache_folder() / "drawings" / key / DRAWN_FILE, lambda target: _draw(target, manifest, split, count))
    stored = ({**row, "where": str(file)} for row in pq.read_table(file)["image"].to_pylist())
    pictures = picture_column(stored)
    labels = list(FAMILIES[manifest.family])
    return _Rows(pictures, labels * count, labels)


def _draw(file: Path, manifest: LabelledManifest, split: str, count: int) -> None:
    """Write a split as parquet in the layout of Hugging Face datasets (feature `Image`)."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features
    from datasets import Image as ImageFeature
    from PIL import ImageOps

    rows = []
    for number in range(count):
        for label in FAMILIES[manifest.family]:
            picture, png = drawing(manifest.family, label, manifest.seed, split, number), io.BytesIO()
            (ImageOps.mirror(picture) if manifest.mirrored else picture).save(png, "PNG")
            rows.append({"image": {"bytes": png.getvalue(), "path": None}})
    pq.write_table(pa.Table.from_pylist(rows, schema=Features({"image": ImageFeature()}).arrow_schema), file)


# Parquet files.


def _from_parquet(manifest: LabelledManifest, split: str) -> _Rows:
    """The rows of a split's files; where both splits are the same files, its part of them."""
    from datasets import ClassLabel

    from vla_tune.data.picture_column import column_of

    columns, pattern = manifest.columns, getattr(manifest, split)
    named = bool(manifest.classes)
    folder = fetched_folder(manifest, [pattern] if named else [manifest.train, manifest.test])
    table = parquet_table(folder, pattern, manifest)
    for key in ("image", "label"):
        _check_column(table, key, getattr(columns, key), manifest)
    pictures = column_of(table, columns.image, folder, manifest.dataset)
    if manifest.split_seed is not None:
        own = _dealt(len(table), manifest.split_seed)[split]
        table, pictures = table.select(own), pictures.select(own)
    labels, feature = _labels(table, manifest), table.features.get(columns.label)
    if named:
        return _Rows(pictures, labels, [])
    if isinstance(feature, ClassLabel):
        return _Rows(pictures, labels, feature.names)
    every = [label for one in (manifest.train, manifest.test) for label in _labels(parquet_table(folder, one, manifest), manifest)]
    return _Rows(pictures, labels, [str(label) for label in dict.fromkeys(every)])


def _check_column(table: Dataset, key: str, name: str, manifest: LabelledManifest) -> None:
    known = set(table.column_names)
    if (name if key == "image" else name.partition(".")[0]) not in known:
        raise UserError(f"columns.{key}: {manifest.dataset} has no column '{name}'; it has {', '.join(sorted(known))}")


def _labels(table: Dataset, manifest: LabelledManifest) -> Labels:
    """Names where the data have them, else text or numbers as they stand."""
    from datasets import ClassLabel

    name = manifest.columns.label
    values, feature = column_values(table, name), table.features.get(name)
    if isinstance(feature, ClassLabel):
        return [feature.names[_place(value, len(feature.names), manifest)] for value in values]
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return values
    if all(isinstance(value, str) and value.strip() for value in values):
        return values
    raise UserError(f"columns.label: '{name}' of {manifest.dataset} holds neither a text nor a whole number in every row")


def _place(value: int | None, count: int, manifest: LabelledManifest) -> int:
    if value is None or not 0 <= value < count:
        raise UserError(f"columns.label: {manifest.dataset} has a row without a label ({value})")
    return value


def _dealt(count: int, seed: int) -> dict[str, list[int]]:
    """Rows of train and of test, dealt as PyTorch's `random_split` does with a generator of this seed."""
    import torch

    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    cut = int(TRAIN_SHARE * count)
    return {"train": order[:cut], "test": order[cut:]}
