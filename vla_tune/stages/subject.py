"""Whose skill an evaluation measures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vla_tune.artifacts.folder import Artifact, read_artifact

if TYPE_CHECKING:
    from vla_tune.config import Config


def subject(config: Config, run: Path) -> tuple[str, Artifact | None]:
    """The policy that `train.path`, or else `RUN/train`, names: a folder or a Hub id, and the train artifact that it belongs to, verified.

    A policy of another origin has none.

    Raises:
        UserError: the artifact is missing, unfinished or damaged.

    """
    path = Path(config.train.path) if config.train.path else run / "train"
    folder = path.parent if path.name == "policy" and (path.parent / "artifact.json").is_file() else path
    ours = config.train.path is None or (folder / "artifact.json").is_file() or (folder / "policy").is_dir()
    if not ours:
        return str(config.train.path), None
    artifact = read_artifact(folder, "train", f"vla-tune train {config.pipeline} --out {folder.parent}")
    return str(folder / "policy"), artifact
