"""Whether a finished stage can be kept: the configuration it read, the artifacts and the files it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_tune.artifacts.folder import file_digest, files_table, read_artifact, table_digest, write_json
from vla_tune.artifacts.typed import read_json
from vla_tune.config import completed, differences, option_of, own_options
from vla_tune.data.manifests import in_folder, manifest_source
from vla_tune.errors import UserError
from vla_tune.policies.devices import resolve_device
from vla_tune.resources import SHIPPED

READS = {
    "anchor": (
        "device",
        "policy",
        "data",
        "anchor.manifest",
        "anchor.samples",
        "anchor.batch_size",
        "anchor.frames",
        "anchor.gradients",
        "anchor.energy",
        "anchor.rank",
        "anchor.exact_width",
        "vqa.manifest",
    ),
    "train": ("seed", "device", "policy", "data", "method", "train", "vqa.manifest", "stream"),
    "eval-vqa": ("seed", "device", "policy", "vqa", "anchor.batch_size", "stream"),
    "eval-rollout": ("seed", "device", "data", "rollout", "stream"),
    "benchmark": ("seed", "device", "policy", "data", "vqa.manifest", "train", "methods"),
}
"""What each stage reads of the configuration; a change elsewhere does not make it stale, nor one of another method's options."""
SOURCES = {
    "anchor": ("policy.path", "policy.base_vlm", "data.manifest", "anchor.manifest", "vqa.manifest"),
    "train": ("policy.path", "policy.base_vlm", "data.manifest", "vqa.manifest"),
    "eval-vqa": ("policy.base_vlm", "vqa.manifest"),
    "eval-rollout": (),
    "benchmark": ("policy.path", "policy.base_vlm", "data.manifest"),
}
"""The keys that name files outside the run; another content under the same name makes a stage stale."""
FILE = "sources.json"
"""Where a run remembers these files' digests, by stage: artifacts do not record them."""


def stale(folder: Path, stage: str, config: dict[str, Any]) -> str | None:
    """Why a stage in `folder` has to be made (again): absent, damaged, or made from something else; None where it can be kept."""
    if not (folder / stage / "artifact.json").is_file():
        return "not made yet"
    try:
        artifact = read_artifact(folder / stage, stage, "make reproduce")
    except UserError as error:
        return f"made again: {error}"
    then, asked = read_by(stage, completed(artifact.config)), read_by(stage, config)
    changed = {**differences(asked, then), **differences(then, asked)}
    if changed:
        return f"made again: {', '.join(changed)} changed"
    known, now = _recorded(folder).get(stage, {}), sources(stage, config)
    moved = differences(known, {key: now[key] for key in now if key in known or not known})  # earlier versions recorded less
    if moved:
        return f"made again: the files that {', '.join(moved)} names changed"
    for made_from in artifact.manifest["inputs"]:
        own = folder / made_from["stage"]
        from_elsewhere = made_from["stage"] == stage or not own.exists()  # a training of another run, say; ours may have been moved
        if _digest_now(Path(made_from["path"]) if from_elsewhere else own, made_from["stage"]) != made_from["digest"]:
            return f"made again: its input {made_from['stage']} changed"
    return None


def read_by(stage: str, config: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that a stage reads, by dotted key."""
    values = {key: option_of(config, key) for key in READS[stage]}
    if values.get("stream"):
        values["stream"] = {key: value for key, value in values["stream"].items() if key != "folder"}  # what lies in it is digested
    if values.get("device") is not None:
        values["device"] = resolve_device(values["device"])
    return {key: own_options(value) if key == "method" else value for key, value in values.items()}


def sources(stage: str, config: dict[str, Any]) -> dict[str, str]:
    """The digests of the files outside the run that a stage reads, by the key that names them; a Hub id stands for itself."""
    named = {key: str(name) for key in SOURCES[stage] if (name := option_of(config, key)) is not None}
    if stage in ("train", "eval-vqa"):
        named |= _streamed(config.get("stream") or {})
    return {key: _source_digest(key, name) for key, name in named.items()}


def _streamed(stream: dict[str, Any]) -> dict[str, str]:
    """The manifests of a stream's tasks and of what belongs to none, by key."""
    named = {f"stream.tasks.{task['name']}.manifest": task["manifest"] for task in stream.get("tasks", ())}
    named["stream.reference.manifest"] = stream.get("reference")
    return {key: in_folder(stream["folder"], name) for key, name in named.items() if name}


def record_sources(folder: Path, stage: str, config: dict[str, Any]) -> None:
    """Remember what a stage that was just made was made from."""
    write_json(folder / FILE, {**_recorded(folder), stage: sources(stage, config)})


def _recorded(folder: Path) -> dict[str, dict[str, str]]:
    """What is remembered; nothing where it is damaged, so that every stage is made again."""
    try:
        known: dict[str, dict[str, str]] = read_json(folder / FILE, dict[str, dict[str, str]])
    except UserError:
        return {}
    return known


def _source_digest(key: str, name: str) -> str:
    if key.endswith("manifest"):
        source = manifest_source(name)
        return table_digest(files_table(source)) if source.is_dir() else file_digest(source)
    folder = SHIPPED[name]() if name in SHIPPED else Path(name)
    return table_digest(files_table(folder)) if folder.is_dir() else name


def _digest_now(path: Path, stage: str) -> str | None:
    if stage == "policy":  # of another origin, no artifact
        return table_digest(files_table(path)) if path.is_dir() else None
    try:
        return read_artifact(path, stage, "make reproduce").digest
    except UserError:
        return None
