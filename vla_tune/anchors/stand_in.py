"""An anchor of which only the sizes count, to plan with: one that is here, or one that is still to be made."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch

from vla_tune.anchors.artifact import SUBSPACE_FILE, Anchor
from vla_tune.anchors.directions import Directions, Subspace
from vla_tune.vlm.parts import linears
from vla_tune.vlm.shapes import with_values

if TYPE_CHECKING:
    from torch import nn

    from vla_tune.artifacts.folder import Artifact
    from vla_tune.config import AnchorConfig


def stand_in(vlm: nn.Module, layers: list[str], depth: int, blocks: int, width: int, settings: AnchorConfig, folder: Path | None) -> Anchor:
    """To be made inside `vla_tune.vlm.shapes.without_values`.

    Args:
        vlm: the policy's.
        layers: those of its linear layers that train.
        depth: how many blocks the whole VLM has. blocks: the policy's. width: of the residual stream.
        settings: what an anchor would be made by.
        folder: of an anchor that is here; without one, each layer is taken to hold as much as it may.

    """
    states = [torch.zeros(width) for _ in range(2 * blocks)]
    stock = [torch.zeros(width) for _ in range(2 * depth)]
    told = {"anchor": {"energy": 1.0}}
    artifact = cast("Artifact", SimpleNamespace(path=folder or Path("RUN/anchor"), config=told))
    robot = [torch.zeros(width) for _ in range(2 * blocks)]
    anchor = Anchor(artifact, states[:blocks], states[blocks:], stock[:depth], stock[depth:], robot[:blocks], robot[blocks:], backbone="")
    subspace = _stored(folder / SUBSPACE_FILE) if folder else _largest(vlm, layers, settings)
    vars(anchor)["subspace"] = subspace  # in place of what it would read
    return anchor


def _largest(vlm: nn.Module, layers: list[str], settings: AnchorConfig) -> Subspace:
    """All directions, up to `anchor.rank`; half of the inputs' carry their energy, which leaves the largest basis to hold."""
    modules = linears(vlm)
    inputs, outputs = {}, {}
    for name in layers:
        weight: Any = modules[name].weight
        out, into = weight.shape[0], weight[0].numel()
        inputs[name] = _halves(into, min(into, settings.rank))
        if settings.gradients:
            kept = min(out, settings.rank)
            outputs[name] = Directions(torch.zeros(out, kept), torch.zeros(kept), 1.0)
    tokens = torch.zeros(cast("Any", vlm).get_input_embeddings().weight.shape[0], dtype=torch.long)
    return Subspace(inputs, outputs, {name: name for name in layers}, tokens)


def _halves(width: int, kept: int) -> Directions:
    """Of which half carry all energy."""
    strong = max(1, width // 2)
    with with_values():
        values = torch.zeros(width)
        values[:strong] = 1 / strong
    return Directions(torch.zeros(width, kept), values, 1.0)


def pairs_bytes(known: Subspace) -> int:
    """The masks of pairs of an input and an output direction, at most; those of a stand-in come out too small."""
    return sum(4 * known.inputs[known.reads[name]].basis.shape[1] * one.basis.shape[1] for name, one in known.outputs.items())


def _stored(file: Path) -> Subspace:
    """What `vla_tune.anchors.artifact` reads of the file, the bases without values."""
    from safetensors import safe_open

    with with_values(), safe_open(file, framework="pt") as opened:  # type: ignore[no-untyped-call]
        reads: dict[str, str] = json.loads(opened.metadata()["reads"])
        names = {name.removesuffix(".basis") for name in opened.keys() if name.endswith(".basis")}  # noqa: SIM118
        found = {
            name: (opened.get_slice(f"{name}.basis").get_shape(), opened.get_tensor(f"{name}.values"), opened.get_tensor(f"{name}.energy"))
            for name in names
        }
        tokens = opened.get_tensor("tokens")
    sides = {name: Directions(torch.zeros(*shape), values, float(energy)) for name, (shape, values, energy) in found.items()}
    inputs = {name: one for name, one in sides.items() if not name.endswith(".outputs")}
    outputs = {name.removesuffix(".outputs"): one for name, one in sides.items() if name.endswith(".outputs")}
    return Subspace(inputs, outputs, reads, tokens)
