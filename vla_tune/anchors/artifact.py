"""An anchor artifact: what it holds, reading and writing it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vla_tune.anchors.directions import Directions, Subspace
from vla_tune.artifacts.folder import Artifact, read_artifact, write_json
from vla_tune.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lerobot.policies.pretrained import PreTrainedPolicy

    from vla_tune.anchors.taking import Taken
    from vla_tune.geometry.gaussian import Moments

FILE = "anchor.safetensors"
SUBSPACE_FILE = "subspace.safetensors"
STOCK, ROBOT = "stock.", "robot."
"""What the names of the Hugging Face path's statistics start with, and those of the robot frames'."""
ENERGIES = (0.9, 0.95, 0.99, 0.999)
"""Where `subspace.json` says what is left free, and how far VQA and robot features overlap."""


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
        return _load_subspace(self.artifact.path / SUBSPACE_FILE)

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
    tensors = load_file(folder / FILE)
    layers = range(int(artifact.metrics["layers"]))

    robot = f"{ROBOT}layers.0.mean" in tensors

    def series(prefix: str, what: str) -> list[Tensor]:
        return [tensors[f"{prefix}layers.{layer}.{what}"] for layer in layers]

    return Anchor(
        artifact,
        mean=series("", "mean"),
        std=series("", "std"),
        stock_mean=series(STOCK, "mean"),
        stock_std=series(STOCK, "std"),
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


def write_anchor(folder: Path, taken: Taken, layers: list[dict[str, Any]], identity: dict[str, Any]) -> None:
    """Write all files of an anchor but `artifact.json`.

    `anchor.safetensors` holds the residual stream's statistics. `subspace.safetensors`: `{layer}.basis` (float32 `[width, kept]`, a
    direction a column, the strongest first), `{layer}.values` (float32, all eigenvalues) and `{layer}.energy` by the first reader of
    an input; `{layer}.outputs.*` likewise, by layer, of the answers' gradients at its outputs; `tokens` (int64 `[vocabulary]`, how
    often each was read); who reads which input is the metadata `reads`.

    Args:
        layers: what `subspace.json` says of each input.
        identity: what tells which VLM it was taken from, kept with the statistics.

    """
    from safetensors.torch import save_file

    tensors = {**tensors_of(taken.policy), **tensors_of(taken.stock, STOCK), **tensors_of(taken.robot, ROBOT)}
    save_file(tensors, folder / FILE, metadata={name: str(value) for name, value in identity.items()})
    tensors = {} if taken.tokens is None else {"tokens": taken.tokens.cpu()}
    for name, directions in taken.inputs.items():
        tensors |= _tensors(name, directions)
    for name, directions in taken.outputs.items():
        tensors |= _tensors(f"{name}.outputs", directions)
    save_file(tensors, folder / SUBSPACE_FILE, metadata={"reads": json.dumps(taken.reads)})
    write_json(folder / "subspace.json", {"energies": list(ENERGIES), "layers": layers})


def tensors_of(moments: Iterable[Moments], prefix: str = "") -> dict[str, Tensor]:
    """`{prefix}layers.{i}.mean`, `.std` (float32 `[d]`) and `.count` (int64), as an anchor artifact holds them."""
    tensors: dict[str, Tensor] = {}
    for number, layer in enumerate(moments):
        name = f"{prefix}layers.{number}"
        tensors[f"{name}.mean"] = layer.mean.float().cpu()
        tensors[f"{name}.std"] = layer.std().float().cpu()
        tensors[f"{name}.count"] = torch.tensor(layer.count)
    return tensors


def _tensors(prefix: str, directions: Directions) -> dict[str, Tensor]:
    return {
        f"{prefix}.basis": directions.basis,
        f"{prefix}.values": directions.values,
        f"{prefix}.energy": torch.tensor(directions.energy),
    }
