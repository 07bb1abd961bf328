"""Reading an anchor artifact."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vla_tune.artifacts.folder import Artifact, read_artifact
from vla_tune.errors import UserError
from vla_tune.geometry.subspace import leading_pairs, rank_of

if TYPE_CHECKING:
    from lerobot.policies.pretrained import PreTrainedPolicy

ROBOT = "robot."
"""What the names of the robot frames' statistics start with."""


@dataclass(frozen=True)
class Directions:
    """Eigenvectors of a second moment: `basis`, float32 `[width, kept]`, the strongest first, column by column in memory.

    values: the eigenvalues, all that were computed. energy: the mean squared norm, their sum.
    """

    basis: Tensor
    values: Tensor
    energy: float

    @property
    def share(self) -> float:
        """Of the energy, what the stored directions carry; a sketch's eigenvalues are too small rather than too large."""
        return float(self.values[: self.basis.shape[1]].double().sum()) / self.energy if self.energy else 1.0

    def to(self, device: torch.device) -> Directions:
        """With the basis on another device."""
        return replace(self, basis=self.basis.to(device))

    def leading(self, energy: float) -> Tensor:
        """Those that carry this share of the energy, or as many as there are."""
        return self.basis[:, : rank_of(self.values, energy, self.energy)]


def protected_pairs(outputs: Directions, inputs: Directions, energy: float) -> Tensor:
    """The mask `[outputs kept, inputs kept]` of `leading_pairs` among the stored directions of a layer's two sides.

    A pair of one that is not stored may be stronger than the last of these; with all directions stored, none is.
    """
    above, below = (side.values[: side.basis.shape[1]] for side in (outputs, inputs))
    return leading_pairs(above, below, energy, outputs.energy * inputs.energy)


@dataclass(frozen=True)
class Subspace:
    """The directions that each linear layer's inputs take on VQA samples, and those in which the answers feel its outputs.

    inputs: by an input's first reader, in the Hugging Face forward.
    outputs: by layer, of the gradients of the answers; empty where the anchor was taken without any.
    reads: linear layer to the first reader of its input.
    tokens: how often each token of the vocabulary was read.
    """

    inputs: dict[str, Directions]
    outputs: dict[str, Directions]
    reads: dict[str, str]
    tokens: Tensor

    def to(self, device: torch.device) -> Subspace:
        """With the directions on another device."""
        inputs, outputs = ({name: one.to(device) for name, one in side.items()} for side in (self.inputs, self.outputs))
        return replace(self, inputs=inputs, outputs=outputs)


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
        names = set(opened.keys())

        def directions(prefix: str) -> Directions:
            basis, values, energy = (opened.get_tensor(f"{prefix}.{part}") for part in ("basis", "values", "energy"))
            return Directions(basis.T.contiguous().T, values, float(energy))

        return Subspace(
            inputs={name: directions(name) for name in sorted(set(reads.values()))},
            outputs={name: directions(f"{name}.outputs") for name in reads if f"{name}.outputs.basis" in names},
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


def check_anchor(anchor: Anchor | None, policy: PreTrainedPolicy) -> None:
    """Stop with a UserError where an anchor was not taken from the policy's VLM."""
    from vla_tune.policies import adapt
    from vla_tune.policies.weights import weights_digest

    if anchor is not None:
        adapter = adapt(policy)
        check_compatible(anchor, layers=len(adapter.layers()), width=adapter.width, backbone=weights_digest(adapter.vlm.state_dict()))
