"""Reading an anchor artifact."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from vla_tune.artifacts import Artifact, read_artifact
from vla_tune.errors import UserError

ROBOT = "robot."
"""What the names of the robot frames' statistics start with."""


@dataclass(frozen=True)
class Subspace:
    """The directions that each linear layer's inputs take on VQA samples, in the Hugging Face forward.

    bases: float32 `[width, kept]` by an input's first reader, the strongest direction first.
    values: the eigenvalues `[width]` that go with them. energy: the mean squared norm.
    reads: linear layer to the first reader of its input.
    tokens: how often each token of the vocabulary was read.
    """

    bases: dict[str, Tensor]
    values: dict[str, Tensor]
    energy: dict[str, float]
    reads: dict[str, str]
    tokens: Tensor


@dataclass(frozen=True)
class Anchor:
    """The residual stream's statistics over VQA samples, per decoder block, in both forward paths.

    mean, std: float32 `[width]` per block, in the policy's own prefix forward.
    stock_mean, stock_std: the same in the Hugging Face forward.
    robot_mean, robot_std: in the policy's path over robot frames; None where the anchor was taken without any.
    backbone: the digest of the VLM's weights that they were taken from.
    """

    artifact: Artifact
    mean: list[Tensor]
    std: list[Tensor]
    stock_mean: list[Tensor]
    stock_std: list[Tensor]
    robot_mean: list[Tensor] | None
    robot_std: list[Tensor] | None
    backbone: str

    @cached_property
    def subspace(self) -> Subspace:
        """What its linear layers read; opened when it is first asked for, as it can be larger than the VLM."""
        return _load_subspace(self.artifact.path / "subspace.safetensors")

    @property
    def width(self) -> int:
        return int(self.mean[0].shape[0])


def load_anchor(path: str | Path) -> Anchor:
    """Open and verify an anchor artifact folder.

    Raises:
        UserError: it is missing, unfinished or damaged.

    """
    from safetensors.torch import load_file

    folder = Path(path)
    artifact = read_artifact(folder, "anchor", f"vla-tune anchor PIPELINE --out {folder.parent}")
    tensors = load_file(folder / "anchor.safetensors")
    layers = range(int(artifact.metrics["layers"]))

    robot = f"{ROBOT}layers.0.mean" in tensors

    def series(prefix: str, what: str) -> list[Tensor]:
        return [tensors[f"{prefix}layers.{layer}.{what}"] for layer in layers]

    return Anchor(
        artifact,
        mean=series("", "mean"),
        std=series("", "std"),
        stock_mean=series("stock.", "mean"),
        stock_std=series("stock.", "std"),
        robot_mean=series(ROBOT, "mean") if robot else None,
        robot_std=series(ROBOT, "std") if robot else None,
        backbone=str(artifact.metrics["backbone"]),
    )


def _load_subspace(file: Path) -> Subspace:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:  # type: ignore[no-untyped-call]
        reads: dict[str, str] = json.loads(opened.metadata()["reads"])
        firsts = sorted(set(reads.values()))
        return Subspace(
            bases={name: opened.get_tensor(f"{name}.basis") for name in firsts},
            values={name: opened.get_tensor(f"{name}.values") for name in firsts},
            energy={name: float(opened.get_tensor(f"{name}.energy")) for name in firsts},
            reads=reads,
            tokens=opened.get_tensor("tokens"),
        )


def check_compatible(anchor: Anchor, *, layers: int, width: int, backbone: str) -> None:
    """Stop with a UserError where the anchor was not taken from the VLM that is about to be trained."""
    theirs, ours = (len(anchor.mean), anchor.width), (layers, width)
    remedy = "make one for this policy with `vla-tune anchor`, or give another anchor.path"
    if theirs != ours:
        raise UserError(
            f"the anchor {anchor.artifact.path} is of another backbone: {theirs[0]} layers {theirs[1]} wide, "
            f"the policy has {ours[0]} layers {ours[1]} wide; {remedy}"
        )
    if anchor.backbone != backbone:
        raise UserError(f"the anchor {anchor.artifact.path} was taken from a VLM with other weights; {remedy}")
