"""What a data set is made of: the typed manifests in `data_manifests/`."""

from __future__ import annotations

from dataclasses import dataclass, field
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


Manifest = DemonstrationsManifest | VqaManifest
SCHEMAS: dict[str, type[Manifest]] = {"demonstrations": DemonstrationsManifest, "vqa": VqaManifest}
GENERATORS = {"demonstrations": ["metaworld"], "vqa": ["shapes", "touch"]}


def load_manifest(name: str) -> Manifest:
    """The shipped manifest of that name.

    Raises:
        UserError: there is none of that name, or its file is wrong.

    """
    if name not in available("data_manifests"):
        raise UserError(f"manifest: there is no data manifest '{name}'; {nearest(name, available('data_manifests'))}")
    file = resource("data_manifests", f"{name}.yaml")
    return parse_manifest(read_yaml(file), str(file))


def parse_manifest(values: dict[str, Any], source: str) -> Manifest:
    """`values` as a manifest of the kind they name; `source` is named in messages."""
    kind = values.get("kind")
    if kind not in SCHEMAS:
        raise UserError(f"{source}: kind: '{kind}' is no kind of data; {nearest(str(kind), list(SCHEMAS))}")
    manifest = structured(SCHEMAS[kind], values, [], source)
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


def manifest_digest(manifest: Manifest) -> str:
    """A digest of everything a manifest says, in hexadecimal."""
    import dataclasses

    return table_digest(dataclasses.asdict(manifest)).removeprefix("sha256:")
