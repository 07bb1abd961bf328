"""What a data set is made of: the typed manifests in `data_manifests/`, your own, and folders of questions."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from vla_tune.artifacts import table_digest
from vla_tune.config import read_yaml, structured
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


QUESTIONS_FILE = "qa.jsonl"
"""What makes a folder one of questions: a JSON object a line, `{image, question, answer or answers, split?, type?, question_id?}`."""
METRICS = ("exact", "vqa", "choice", "yes_no")
"""One right answer; VQA's soft accuracy over annotators; multiple choice by letter or text; yes or no, with POPE's figures."""

Manifest = DemonstrationsManifest | VqaManifest | BenchmarkManifest
SCHEMAS: dict[str, type[Manifest]] = {"demonstrations": DemonstrationsManifest, "vqa": VqaManifest, "vqa-benchmark": BenchmarkManifest}
GENERATORS = {"demonstrations": ["metaworld"], "vqa": ["shapes", "touch"]}


def load_manifest(name: str) -> Manifest:
    """The shipped manifest of that name, that of a YAML file, or one for a folder that holds `qa.jsonl`.

    Raises:
        UserError: there is none of that name, or its file is wrong.

    """
    place = manifest_source(name)
    if place.is_dir():
        return BenchmarkManifest(dataset=str(place), license="unstated")
    return parse_manifest(read_yaml(place), str(place))


def manifest_source(name: str) -> Path:
    """The file or folder that a manifest's name, or path, stands for.

    Raises:
        UserError: there is none.

    """
    if name in available("data_manifests"):
        return resource("data_manifests", f"{name}.yaml")
    place = Path(name).expanduser()
    if place.is_dir():
        if not (place / QUESTIONS_FILE).is_file():
            raise UserError(f"manifest: the folder {name} holds no {QUESTIONS_FILE}; docs/benchmarks.md says what it has to look like")
        return place
    if name.endswith((".yaml", ".yml")) or "/" in name:
        if not place.is_file():
            raise UserError(f"manifest: there is no file or folder {name}")
        return place
    raise UserError(
        f"manifest: there is no data manifest '{name}'; {nearest(name, available('data_manifests'))} "
        f"(or give the path of a YAML file, or of a folder with {QUESTIONS_FILE})"
    )


def parse_manifest(values: dict[str, Any], source: str) -> Manifest:
    """`values` as a manifest of the kind they name; `source` is named in messages."""
    kind = values.get("kind")
    if kind not in SCHEMAS:
        raise UserError(f"{source}: kind: '{kind}' is no kind of data; {nearest(str(kind), list(SCHEMAS))}")
    manifest = structured(SCHEMAS[kind], values, [], source)
    if isinstance(manifest, BenchmarkManifest):
        _check_benchmark(manifest, source)
        return manifest
    if manifest.generator not in GENERATORS[kind]:
        raise UserError(f"{source}: generator: '{manifest.generator}' is unknown; {nearest(manifest.generator, GENERATORS[kind])}")
    if isinstance(manifest, DemonstrationsManifest):
        _check_demonstrations(manifest, source)
    else:
        _check_questions(manifest, source)
    return manifest


def _check_demonstrations(manifest: DemonstrationsManifest, source: str) -> None:
    if not manifest.tasks:
        raise UserError(f"{source}: tasks: at least one task is needed")
    for key in ("episodes_per_task", "image_size"):
        if getattr(manifest, key) < 1:
            raise UserError(f"{source}: {key}={getattr(manifest, key)}: must be at least 1")


def _check_questions(manifest: VqaManifest, source: str) -> None:
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
    for key in () if local else ("anchor", "test"):
        if not getattr(manifest, key):
            raise UserError(f"{source}: {key}: name the parquet files of the data set that serve as it, for example data/test-*.parquet")


def manifest_digest(manifest: Manifest) -> str:
    """A digest of everything a manifest says, in hexadecimal."""
    import dataclasses

    return table_digest(dataclasses.asdict(manifest)).removeprefix("sha256:")
