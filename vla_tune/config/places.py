"""Folders and files that a configuration names: `~` expanded, and each there before anything is made of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from vla_tune.config.schema import Config
from vla_tune.config.values import value_of
from vla_tune.errors import UserError, brief, nearest
from vla_tune.methods.options import METHODS
from vla_tune.resources import SHIPPED, available

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
"""What may be a name on the Hugging Face Hub; anything else is a path."""
Stage = Literal["anchor", "train", "eval_vqa", "eval_rollout", "evaluate", "check"]
FOLDERS = ("data.root", "anchor.path", "method.wise_ft.path", "stream.folder")
SOURCES = ("policy.path", "policy.base_vlm", "train.path")
"""Keys of folders, and of what may be on the Hub instead."""
MANIFESTS = ("data.manifest", "anchor.manifest", "vqa.manifest")
"""Of manifests; a stream's start at its folder, and are looked for with it."""
_START = ("policy.path", "policy.base_vlm")
READS: dict[Stage, tuple[str, ...]] = {
    "anchor": (*_START, "data.root"),
    "train": (*_START, "data.root"),
    "eval_vqa": ("policy.base_vlm", "anchor.path", "train.path"),
    "eval_rollout": ("data.root", "train.path"),
    "evaluate": ("policy.base_vlm", "data.root", "anchor.path", "train.path"),
    "check": (*_START, "data.root"),
}
"""Which of these keys a stage reads; another's may name what is made later."""


def expanded(key: str, name: str) -> Path:
    """A path of the user's with `~` as their home folder."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise UserError(f"{key}={brief(name)}: there is no user of this name; write the whole path") from None


def expand(config: Config) -> None:
    """Put the home folder for `~`, in place."""
    for key in (*FOLDERS, *SOURCES, *MANIFESTS):
        name = value_of(config, key)
        if name is not None and name.startswith("~"):
            section, _, field = key.rpartition(".")
            setattr(value_of(config, section), field, str(expanded(key, name)))


def check_places(config: Config, stage: Stage) -> None:
    """Stop where a folder that the stage reads is not there.

    Raises:
        UserError: names the key, and a folder of a similar name.

    """
    for key in (*READS[stage], *_of_method(config, stage)):
        if key == "data.root" and stage in ("eval_rollout", "evaluate") and (config.rollout.tasks or config.stream.tasks):
            continue  # a world, and no demonstrations
        name = value_of(config, key)
        if name is not None and (key in FOLDERS or (name not in SHIPPED and not HUB_ID.fullmatch(name)) or Path(name).is_file()):
            check_folder(key, name)


def check_folder(key: str, name: str) -> None:
    """Stop where there is no such folder."""
    place = Path(name)
    if place.is_dir():
        return
    if place.is_file():
        raise UserError(f"{key}={brief(name)}: this is a file; give its folder, {place.parent}")
    raise UserError(f"{key}={brief(name)}: there is no such folder{_beside(place, folders=True)}")


def check_manifests(config: Config) -> None:
    """Stop where a manifest that the configuration names is neither shipped nor here.

    Raises:
        UserError: names the key, and a manifest of a similar name.

    """
    for key in MANIFESTS:
        name = value_of(config, key)
        if name is None or name in available("data_manifests") or Path(name).exists():
            continue
        if HUB_ID.fullmatch(name) and "/" not in name and not Path(name).suffix:
            raise UserError(
                f"{key}={name}: there is no data manifest of this name; {nearest(name, available('data_manifests'))} "
                "(or give the path of a YAML file, or of a folder with qa.jsonl or index.csv)"
            )
        raise UserError(f"{key}={brief(name)}: there is no such file or folder{_beside(Path(name), folders=False)}")


def _of_method(config: Config, stage: Stage) -> tuple[str, ...]:
    """What the chosen method reads of an earlier run."""
    method = METHODS.get(config.method.name)
    if stage not in ("train", "check") or method is None:
        return ()
    keys = {"anchor": "anchor.path", "run": "method.wise_ft.path"}
    needs = {*method.needs, *(("anchor",) if config.stream.tasks and config.method.igsp.protect else ())}
    return tuple(keys[need] for need in keys if need in needs)


def _beside(place: Path, *, folders: bool) -> str:
    """What there is of a similar name, or how far the path goes."""
    try:
        if place.parent.is_dir():
            near = [one.name for one in place.parent.iterdir() if one.is_dir() or not folders]
            hint = nearest(place.name, near) if near else ""
            return f"; {hint}" if hint.startswith("did you mean") else ""
    except OSError:
        return ""
    there = next((one for one in place.parents if one.is_dir()), None)
    return f"; {there} is there" if there and there != Path() else ""
