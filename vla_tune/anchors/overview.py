"""What an anchor leaves free, layer by layer and by the part of the VLM, and how much of the robot's features it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vla_tune.anchors.artifact import ENERGIES
from vla_tune.anchors.directions import Directions, protected_pairs
from vla_tune.console import table
from vla_tune.geometry.subspace import share_inside
from vla_tune.vlm.parts import vlm_group_of

if TYPE_CHECKING:
    from vla_tune.anchors.taking import Taken

SHOWN = (0.9, 0.99)
"""Those of them that the console shows."""


def by_layer(taken: Taken) -> list[dict[str, Any]]:
    """Per input: who reads it, how much of it is kept and left free, and how much of the robot's features the kept part holds."""
    layers = []
    for name, directions in taken.inputs.items():
        readers = [reader for reader, first in taken.reads.items() if first == name]
        felt_by = [taken.outputs[reader] for reader in readers if reader in taken.outputs]
        width, kept = directions.basis.shape
        bases = {str(energy): directions.leading(energy) for energy in ENERGIES}
        seen = getattr(taken.robot_inputs.get(name), "total", None)
        layers.append(
            {
                "layer": name,
                "readers": readers,
                "width": width,
                "kept": kept,
                "free": {energy: 1 - basis.shape[1] / width for energy, basis in bases.items()},
                "free_pairs": {str(energy): _free_pairs(directions, felt_by, energy) for energy in ENERGIES},
                "overlap": {energy: None if seen is None else share_inside(seen.cpu(), basis) for energy, basis in bases.items()},
            }
        )
    return layers


def _free_pairs(inputs: Directions, outputs: list[Directions], energy: float) -> float | None:
    """The share of the pairs of directions that the layers which read an input have free; None where too little is stored to tell."""
    if not outputs or energy > inputs.share * min(one.share for one in outputs):
        return None
    protected = sum(int(protected_pairs(one, inputs, energy).sum()) for one in outputs)
    return 1 - protected / (len(inputs.basis) * sum(len(one.basis) for one in outputs))


def show_parts(layers: list[dict[str, Any]]) -> None:
    """Print means by the part of the VLM: what is left free, and how much of the robot's features is not."""
    told = {"free": "free", "free_pairs": "pairs free", "overlap": "robot inside"}
    parts: dict[str, list[dict[str, Any]]] = {}
    for layer in layers:
        parts.setdefault(vlm_group_of(layer["layer"]), []).append(layer)

    def mean(members: list[dict[str, Any]], what: str, energy: float) -> str:
        values = [member[what][str(energy)] for member in members]
        return "-" if None in values else f"{100 * sum(values) / len(values):.0f} %"

    rows = [[part, *(mean(members, what, energy) for what in told for energy in SHOWN)] for part, members in parts.items()]
    header = ["part", *(f"{words} at {energy}" for words in told.values() for energy in SHOWN)]
    table(
        "subspace anchor: input directions and pairs left free, and the share of robot features inside the protected inputs", header, rows
    )
