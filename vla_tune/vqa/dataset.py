"""The questions of a manifest, and the VQA sets that we make ourselves: pictures with three questions each, answers balanced in every type.

The order is fixed and every six questions hold each type once, so the first N questions of a split are a smaller set
of the same kind. Made once, kept under the cache folder, and checked before reuse.
"""

from __future__ import annotations

import functools
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_tune.artifacts.folder import table_digest
from vla_tune.artifacts.store import made_once
from vla_tune.data.manifests import GENERATORS, BenchmarkManifest, DemonstrationsManifest, LabelledManifest, VqaManifest, load_manifest
from vla_tune.data.scenes import SPLITS, noisy, picture_hash
from vla_tune.errors import UserError
from vla_tune.resources import cache_folder
from vla_tune.vqa.generator import Drawable, Generator, Question

if TYPE_CHECKING:
    from datasets import Dataset

QUESTIONS_VERSION = 1
PICTURES = 1000
QUESTIONS_PER_PICTURE = 3
CANDIDATES = 3
"""Fitting scenes looked at for each picture."""
DRAWS = 8
"""Questions of one type drawn from one scene, of which the one with the rarest answer is kept."""
SIZE_KEYS = {"anchor": "anchor.samples", "test": "vqa.questions"}
FILE = "questions.parquet"


def generator_of(manifest: VqaManifest) -> Generator[Any]:
    """The generator that a manifest names; a robot's world is imported when it is needed."""
    found: Generator[Any] = import_module(GENERATORS["vqa"][manifest.generator]).GENERATOR
    return found


def vqa_questions(manifest_name: str, split: str, count: int | None = None) -> Dataset:
    """The first `count` questions (all, without a count) of a manifest's split, `anchor` or `test`, made or fetched where missing.

    Columns: question_id, image_id, image, type, question, answers (all right ones, the one to learn first); a benchmark's also
    prompt and choices (`vla_tune.vqa.benchmarks`).

    Raises:
        UserError: the manifest is not one of questions, the split has fewer, or they cannot be read.

    """
    from vla_tune.vqa.benchmarks import benchmark_questions, check_question_pictures

    manifest = load_manifest(manifest_name)
    if isinstance(manifest, DemonstrationsManifest | LabelledManifest):
        raise UserError(f"vqa.manifest={manifest_name}: it describes {manifest.kind}, not questions")
    benchmark = benchmark_questions(manifest, split) if isinstance(manifest, BenchmarkManifest) else None
    total = PICTURES * QUESTIONS_PER_PICTURE if benchmark is None else len(benchmark)
    if count is not None and count > total:
        raise UserError(f"{SIZE_KEYS[split]}={count}: the {split} split of '{manifest_name}' has {total} questions")
    wanted = total if count is None else count
    if benchmark is not None:
        chosen = benchmark.select(range(wanted))
        check_question_pictures(chosen, manifest_name)
        return chosen
    assert isinstance(manifest, VqaManifest)
    return _read(_stored(manifest, split), wanted)


def metric_of(manifest_name: str) -> str:
    """The name of the scorer that a manifest's questions are marked by, one of `vla_tune.vqa.scorers.SCORERS`."""
    manifest = load_manifest(manifest_name)
    return manifest.metric if isinstance(manifest, BenchmarkManifest) else "exact"


def questions_digest(questions: Dataset) -> str:
    """`sha256:...` of questions, answers and pictures, by their content: a benchmark's `image_id` may be a name."""
    from vla_tune.data.picture_column import content_id, stored_pictures

    in_files = functools.cache(lambda path: content_id({"bytes": None, "path": path}))  # many questions share a picture
    pictures = [in_files(one["path"]) if one["bytes"] is None else content_id(one) for one in stored_pictures(questions)]
    return table_digest({**questions.remove_columns("image").to_dict(), "image": pictures})


def generate[S: Drawable](
    generator: Generator[S], seed: int, split: str, pictures: int, types: Sequence[str] = ()
) -> Iterator[tuple[S, list[Question]]]:
    """Scenes of a split with three questions each; two scenes in a row share out the six types, or each has the three of `types`.

    Of `CANDIDATES` scenes the one is kept whose questions have the answers used least so far within their types.
    """
    rng = np.random.default_rng([seed, SPLITS[split], QUESTIONS_VERSION])
    used: Counter[tuple[str, ...]] = Counter()
    scenes = iter(range(generator.scenes))
    hands: list[list[str]] = []
    for _ in range(pictures):
        if not hands:
            dealt = rng.permutation(list(types or generator.answers)).tolist()
            hands = [dealt[at : at + QUESTIONS_PER_PICTURE] for at in range(0, len(dealt), QUESTIONS_PER_PICTURE)]
        kinds = hands.pop(0)
        offers: list[tuple[int, int, S, list[Question]]] = []
        while len(offers) < CANDIDATES:
            index = next(scenes)
            scene = generator.sample(seed, split, index)
            questions = [question for kind in kinds if (question := _rarest(generator, scene, kind, rng, used))]
            if len(questions) == len(kinds):
                offers.append((sum(_lead(generator, question, used) ** 2 for question in questions), index, scene, questions))
        _, _, scene, questions = min(offers, key=lambda offer: offer[:2])
        for question in questions:
            used[question.type, question.answer] += 1
            used[question.type, question.text, question.answer] += 1
        yield scene, questions


def _rarest[S: Drawable](
    generator: Generator[S], scene: S, kind: str, rng: np.random.Generator, used: Counter[tuple[str, ...]]
) -> Question | None:
    """Of `DRAWS` questions the one whose answer is the rarest so far, in its type and then for its own text."""
    drawn = [generator.ask(scene, kind, rng) for _ in range(DRAWS)]
    fit = [q for q in drawn if q and q.answer in generator.answers[kind]]
    return min(fit, key=lambda q: (used[kind, q.answer], used[kind, q.text, q.answer]), default=None)


def _lead(generator: Generator[Any], question: Question, used: Counter[tuple[str, ...]]) -> int:
    """How often this answer was used more than the rarest one of its type."""
    return used[question.type, question.answer] - min(used[question.type, answer] for answer in generator.answers[question.type])


def _stored(manifest: VqaManifest, split: str) -> Path:
    """The parquet file of a whole split, made where it is missing or does not match its digest."""
    kind = "-".join([manifest.generator, *sorted(manifest.types), *([manifest.style] if manifest.style != "plain" else [])])
    folder = cache_folder() / "questions" / f"{kind}-{generator_of(manifest).version}.{QUESTIONS_VERSION}-seed-{manifest.seed}-{split}"
    return made_once(folder / FILE, lambda file: _write(file, manifest, split))


def _write(file: Path, manifest: VqaManifest, split: str) -> None:
    """Write a split as parquet in the layout of Hugging Face datasets (feature `Image`)."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features, List, Value
    from datasets import Image as ImageFeature

    columns = {name: Value("string") for name in ("question_id", "image_id", "type", "question")}
    features = Features({**columns, "image": ImageFeature(), "answers": List(Value("string"))})
    rows: list[dict[str, Any]] = []
    for picture, (scene, questions) in enumerate(generate(generator_of(manifest), manifest.seed, split, PICTURES, manifest.types)):
        drawn, png = scene.draw(), io.BytesIO()
        if manifest.style == "noise":
            drawn = noisy(drawn, manifest.seed, split, picture)
        drawn.save(png, "PNG")
        shared = {"image_id": picture_hash(drawn)[:16], "image": {"bytes": png.getvalue(), "path": None}}
        for number, question in enumerate(questions):
            asked = {"type": question.type, "question": question.text, "answers": [question.answer]}
            rows.append({"question_id": f"{split}-{picture:04d}-{number}", **shared, **asked})
    pq.write_table(pa.Table.from_pylist(rows, schema=features.arrow_schema), file)


def _read(file: Path, count: int) -> Dataset:
    import pyarrow.parquet as pq
    from datasets import Dataset
    from datasets.table import InMemoryTable

    return Dataset(InMemoryTable(pq.read_table(file).slice(0, count).combine_chunks()))
