"""What a data set is made of: the typed manifests in `data_manifests/`, your own, and folders of questions or of labelled pictures."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from string import Formatter
from typing import Any

from omegaconf import MISSING

from vla_tune.artifacts.folder import table_digest
from vla_tune.config import read_yaml, structured
from vla_tune.data.drawings import FAMILIES
from vla_tune.data.scenes import QUESTION_TYPES, STYLES
from vla_tune.errors import UserError, nearest
from vla_tune.resources import available, resource


@dataclass
class DemonstrationsManifest:
    """Scripted experts to record: `episodes_per_task` successful episodes of each task, their seeds following from `seed`."""

    kind: str = "demonstrations"
    generator: str = "metaworld"
    tasks: list[str] = field(default_factory=lambda: MISSING)
    episodes_per_task: int = MISSING
    image_size: int = 64
    seed: int = 0
    license: str = MISSING


@dataclass
class VqaManifest:
    """Questions to draw; the splits (train, anchor, test) are the generator's own.

    generator: `shapes` (drawn), or `touch` (the scene of our touch tasks, through the robot's camera).
    types: three of the question types of shapes; empty: all six. style: `plain`, or `noise` (a noisy camera).
    """

    kind: str = "vqa"
    generator: str = "shapes"
    types: list[str] = field(default_factory=list)
    style: str = "plain"
    seed: int = 0
    license: str = MISSING


@dataclass
class Columns:
    """Where a benchmark's rows hold what; `a.b` is the field `b` of the column `a`.

    answers: one string, a list of them, a list of `{answer: ...}`, or with `choices` the right one's number, counted from 0.
    choices: the options of a multiple choice.
    image_id: names the picture; default: its content does. question_id: must be unique; default: the row's number.
    type: groups the results.
    """

    image: str = "image"
    question: str = "question"
    answers: str = "answer"
    choices: str | None = None
    image_id: str | None = None
    question_id: str | None = None
    type: str | None = None


@dataclass
class BenchmarkManifest:
    """Questions that somebody else asked: parquet files of a data set on the Hugging Face Hub, or of a folder laid out like one.

    dataset: Hub id, a folder laid out like one, or a folder that holds `qa.jsonl`, which needs none of the next five keys.
    revision: a commit on the Hub. anchor, test: each a glob of files; where both are the same, pictures are dealt to the two by a hash.
    pictures: a glob of files with columns `id` and the image's, where the rows name pictures by `columns.image_id` and hold none.
    metric: how an answer is scored, one of `METRICS`.
    prompt: what the VLM is asked, `{question}` and `{choices}` filled in; its family's own words go around it.
    download_mb: what is fetched from the Hub, in MB.
    """

    kind: str = "vqa-benchmark"
    dataset: str = MISSING
    revision: str | None = None
    anchor: str = ""
    test: str = ""
    pictures: str | None = None
    columns: Columns = field(default_factory=Columns)
    metric: str = "exact"
    prompt: str = "{question}"
    license: str = MISSING
    download_mb: int = 0


@dataclass
class PerClass:
    """How many pictures of each class are drawn for a split."""

    train: int = 40
    test: int = 20


@dataclass
class LabelColumns:
    """Where the rows of labelled pictures hold what; `a.b` is the field `b` of the column `a`."""

    image: str = "image"
    label: str = "label"


@dataclass
class LabelledManifest:
    """Pictures with one label each, to train a CLIP on and to test it: drawn by us, or somebody else's.

    generator: `drawings`, which takes the next four keys; without it `dataset` is read.
    family: what is drawn, one of `vla_tune.data.drawings.FAMILIES`. mirrored: pictures are flipped left to right, labels stay.
    dataset: Hub id, a folder laid out like one, or a folder or .zip that holds `index.csv`, which needs none of the next five keys.
    revision: a commit on the Hub. train, test: each a glob of parquet files.
    split_seed: where train and test are the same files, a random 80 % of the rows by this seed are train, the others test.
    classes: each label as it stands in the data (a number without a name: its place here, from 0), and the words for it, in the order
        of the classes; empty: the labels as they stand, sorted, in lower case, CamelCase and under_scores made words.
    templates: what a picture says, the words filled in for `{}`; training uses the first, evaluation the mean of all.
    download_mb: what is fetched from the Hub, in MB.
    """

    kind: str = "classification"
    generator: str | None = None
    family: str = ""
    per_class: PerClass = field(default_factory=PerClass)
    mirrored: bool = False
    seed: int = 0
    dataset: str = ""
    revision: str | None = None
    train: str = ""
    test: str = ""
    columns: LabelColumns = field(default_factory=LabelColumns)
    split_seed: int | None = None
    classes: dict[str, str] = field(default_factory=dict)
    templates: list[str] = field(default_factory=lambda: ["a photo of a {}."])
    license: str = MISSING
    download_mb: int = 0


INDEX_FILE = "index.csv"
"""What makes a folder or a .zip one of labelled pictures: a table with the columns file, label and split (train or test)."""
QUESTIONS_FILE = "qa.jsonl"
"""What makes a folder one of questions: a JSON object a line, `{image, question, answer or answers, split?, type?, question_id?}`."""
METRICS = ("exact", "vqa", "choice", "yes_no")
"""One right answer; VQA's soft accuracy over annotators; multiple choice by letter or text; yes or no, with POPE's figures."""

Manifest = DemonstrationsManifest | VqaManifest | BenchmarkManifest | LabelledManifest
SCHEMAS: dict[str, type[Manifest]] = {
    "demonstrations": DemonstrationsManifest,
    "vqa": VqaManifest,
    "vqa-benchmark": BenchmarkManifest,
    "classification": LabelledManifest,
}
GENERATORS = {
    "demonstrations": {"metaworld": "vla_tune.simulators.metaworld.recording"},
    "vqa": {"shapes": "vla_tune.vqa.questions", "touch": "vla_tune.simulators.metaworld.touch_scenes"},
    "classification": {"drawings": "vla_tune.data.drawings"},
}
"""By kind of manifest: what can make its data, and the module that does, imported then."""
_DRAWN_KEYS = ("family", "per_class", "mirrored", "seed")
_FILE_KEYS = ("revision", "train", "test", "columns", "split_seed")
"""What a classification manifest says of drawings alone, and of parquet files alone."""


def load_manifest(name: str) -> Manifest:
    """The shipped manifest of that name, that of a YAML file, or one for a folder with `qa.jsonl`, or a folder or .zip with `index.csv`.

    Raises:
        UserError: there is none of that name, or its file is wrong.

    """
    place = manifest_source(name)
    if (place / QUESTIONS_FILE).is_file():
        return BenchmarkManifest(dataset=str(place), license="unstated")
    if holds_index(str(place)):
        return LabelledManifest(dataset=str(place), license="unstated")
    return parse_manifest(read_yaml(place), str(place))


def in_folder(folder: str | None, name: str) -> str:
    """A manifest's name or path; that of `stream.folder` where it holds one of this name."""
    inside = Path(folder).expanduser() / name if folder else None
    if inside is not None and inside.exists():
        return str(inside)
    if name not in available("data_manifests") and not Path(name).expanduser().exists():
        where = f"{folder} has none of this name" if folder else "set stream.folder, where relative paths start"
        raise UserError(f"stream: there is no data manifest '{name}'; {where}, or {nearest(name, available('data_manifests'))}")
    return name


def manifest_source(name: str) -> Path:
    """The file or folder that a manifest's name, or path, stands for.

    Raises:
        UserError: there is none.

    """
    if name in available("data_manifests"):
        return resource("data_manifests", f"{name}.yaml")
    place = Path(name).expanduser()
    if place.is_dir():
        if not any((place / file).is_file() for file in (QUESTIONS_FILE, INDEX_FILE)):
            raise UserError(
                f"manifest: the folder {name} holds no {QUESTIONS_FILE} (questions; docs/benchmarks.md) and no {INDEX_FILE} (labelled "
                "pictures: a table with the columns file, label and split)"
            )
        return place
    if place.is_file() and (name.endswith((".yaml", ".yml", ".zip")) or "/" in name):
        return place
    if name.endswith((".yaml", ".yml", ".zip")) or "/" in name:
        raise UserError(f"manifest: there is no file or folder {name}")
    raise UserError(
        f"manifest: there is no data manifest '{name}'; {nearest(name, available('data_manifests'))} "
        f"(or give the path of a YAML file, or of a folder with {QUESTIONS_FILE} or {INDEX_FILE})"
    )


def holds_index(dataset: str) -> bool:
    """Whether a data set is a folder with `index.csv`, or a .zip, which can be nothing else."""
    place = Path(dataset).expanduser()
    return place.suffix == ".zip" or (place / INDEX_FILE).is_file()


def parse_manifest(values: dict[str, Any], source: str) -> Manifest:
    """`values` as a manifest of the kind they name; `source` is named in messages."""
    kind = values.get("kind")
    if kind not in SCHEMAS:
        raise UserError(f"{source}: kind: '{kind}' is no kind of data; {nearest(str(kind), list(SCHEMAS))}")
    manifest = structured(SCHEMAS[kind], values, [], source)
    if isinstance(manifest, BenchmarkManifest):
        _check_benchmark(manifest, source)
    elif isinstance(manifest, LabelledManifest):
        _check_labelled(manifest, source)
    elif isinstance(manifest, DemonstrationsManifest):
        _check_demonstrations(manifest, source)
    else:
        _check_questions(manifest, source)
    return manifest


def _check_generator(generator: str, kind: str, source: str) -> None:
    if generator not in GENERATORS[kind]:
        raise UserError(f"{source}: generator: '{generator}' is unknown; {nearest(generator, list(GENERATORS[kind]))}")


def _check_demonstrations(manifest: DemonstrationsManifest, source: str) -> None:
    _check_generator(manifest.generator, manifest.kind, source)
    if not manifest.tasks:
        raise UserError(f"{source}: tasks: at least one task is needed")
    for key in ("episodes_per_task", "image_size"):
        if getattr(manifest, key) < 1:
            raise UserError(f"{source}: {key}={getattr(manifest, key)}: must be at least 1")


def _check_questions(manifest: VqaManifest, source: str) -> None:
    _check_generator(manifest.generator, manifest.kind, source)
    if manifest.types and manifest.generator != "shapes":
        raise UserError(f"{source}: types: they can be chosen for the generator 'shapes' alone")
    for name in manifest.types:
        if name not in QUESTION_TYPES:
            raise UserError(f"{source}: types: '{name}' is no type of question; {nearest(name, list(QUESTION_TYPES))}")
    if len(set(manifest.types)) not in (0, 3):
        raise UserError(f"{source}: types: give three different ones, which each picture is asked, or none for all six")
    if manifest.style not in STYLES:
        raise UserError(f"{source}: style: '{manifest.style}' is unknown; {nearest(manifest.style, list(STYLES))}")


def _check_benchmark(manifest: BenchmarkManifest, source: str) -> None:
    if manifest.metric not in METRICS:
        raise UserError(f"{source}: metric: '{manifest.metric}' is unknown; {nearest(manifest.metric, list(METRICS))}")
    if "{question}" not in manifest.prompt:
        raise UserError(f"{source}: prompt: the question has to stand in it, as {{question}}")
    if ("{choices}" in manifest.prompt) != (manifest.columns.choices is not None):
        raise UserError(f"{source}: prompt, columns.choices: a multiple choice takes both, the column and {{choices}} in the prompt")
    if manifest.columns.choices is not None and manifest.metric != "choice":
        raise UserError(f"{source}: metric={manifest.metric}: with columns.choices it must be choice")
    if manifest.pictures is not None and manifest.columns.image_id is None:
        raise UserError(f"{source}: columns.image_id: pictures are found by it, so it must be named")
    local = (Path(manifest.dataset).expanduser() / QUESTIONS_FILE).is_file()
    own = ("pictures",) if manifest.pictures is not None else ()
    _check_globs(manifest, own if local else ("anchor", "test", *own), source)


def _check_globs(manifest: Manifest, keys: tuple[str, ...], source: str) -> None:
    """A data set's files lie in its folder, and `**` stands for whole folders."""
    for key in keys:
        parts = getattr(manifest, key).split("/")
        if ".." in parts or not parts[0] or any("**" in part and part != "**" for part in parts):
            raise UserError(
                f"{source}: {key}: name the parquet files of the data set that serve as it, for example data/{key}-*.parquet; "
                f"here it is '{getattr(manifest, key)}'"
            )


def _check_labelled(manifest: LabelledManifest, source: str) -> None:
    if (manifest.generator is None) == (not manifest.dataset):
        raise UserError(f"{source}: generator, dataset: give one of them: pictures are either drawn or read")
    _check_drawn(manifest, manifest.generator, source) if manifest.generator is not None else _check_read(manifest, source)
    for template in manifest.templates:
        if _fields(template) != [""]:
            raise UserError(f"{source}: templates: the class has to stand in '{template}' once, as {{}}, and no other braces")
    if not manifest.templates:
        raise UserError(f"{source}: templates: at least one is needed, for example a photo of a {{}}.")
    words = list(manifest.classes.values())
    if twice := [one for one in words if words.count(one) > 1]:
        raise UserError(f"{source}: classes: '{twice[0]}' stands for two labels, which no text could tell apart; word them differently")


def _fields(template: str) -> list[str | None]:
    """What a template has to be filled in with, [""] for one `{}`; none that can be where its braces do not match."""
    try:
        return [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError:
        return [None]


def _check_drawn(manifest: LabelledManifest, generator: str, source: str) -> None:
    _check_generator(generator, manifest.kind, source)
    _check_unused(manifest, (*_FILE_KEYS, "download_mb"), f"generator: {generator}", source)
    if manifest.family not in FAMILIES:
        raise UserError(f"{source}: family: '{manifest.family}' is unknown; {nearest(manifest.family, list(FAMILIES))}")
    for split in ("train", "test"):
        if getattr(manifest.per_class, split) < 1:
            raise UserError(f"{source}: per_class.{split}={getattr(manifest.per_class, split)}: must be at least 1")


def _check_read(manifest: LabelledManifest, source: str) -> None:
    _check_unused(manifest, _DRAWN_KEYS, "dataset", source)
    if holds_index(manifest.dataset):
        _check_unused(manifest, _FILE_KEYS, f"a dataset with {INDEX_FILE}", source)
        return
    _check_globs(manifest, ("train", "test"), source)
    if (manifest.train == manifest.test) != (manifest.split_seed is not None):
        raise UserError(f"{source}: split_seed: it is needed where train and test are the same files, and only there")


def _check_unused(manifest: LabelledManifest, keys: tuple[str, ...], beside: str, source: str) -> None:
    """A key that would be read past is told."""
    untouched = LabelledManifest()
    for key in keys:
        if getattr(manifest, key) != getattr(untouched, key):
            raise UserError(f"{source}: {key}: it says nothing beside {beside}; leave it out")


def manifest_digest(manifest: Manifest) -> str:
    """A digest of everything a manifest says, in hexadecimal."""
    return table_digest(asdict(manifest)).removeprefix("sha256:")
