"""Reading an anchor artifact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vla_tune.artifacts import Artifact, read_artifact
from vla_tune.errors import UserError


@dataclass(frozen=True)
class Anchor:
    """The residual stream's statistics over VQA samples, per decoder block, in both forward paths.

    mean, std: float32 `[width]` per block, in the policy's own prefix forward.
    stock_mean, stock_std: the same in the Hugging Face forward.
    backbone: the digest of the VLM's weights that they were taken from.
    """

    artifact: Artifact
    mean: list[Tensor]
    std: list[Tensor]
    stock_mean: list[Tensor]
    stock_std: list[Tensor]
    backbone: str

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

    def series(prefix: str, what: str) -> list[Tensor]:
        return [tensors[f"{prefix}layers.{layer}.{what}"] for layer in layers]

    return Anchor(
        artifact,
        mean=series("", "mean"),
        std=series("", "std"),
        stock_mean=series("stock.", "mean"),
        stock_std=series("stock.", "std"),
        backbone=str(artifact.metrics["backbone"]),
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
