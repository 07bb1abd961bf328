"""The anchor: what the VLM's layers look like, and what they read, on VQA questions before anything is trained."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vla_tune.anchors.artifact import ROBOT, Directions, protected_pairs
from vla_tune.anchors.inputs import LinearInputs
from vla_tune.anchors.outputs import OutputGradients
from vla_tune.anchors.passes import STOCK, answer_gradients, policy_moments, stock_moments, tensors_of
from vla_tune.artifacts.folder import Artifact, Draft, write_json
from vla_tune.config import AnchorConfig, Config
from vla_tune.console import say, table
from vla_tune.geometry.subspace import rank_of, share_inside
from vla_tune.policies import adapt
from vla_tune.policies.devices import on_device
from vla_tune.policies.loading import grafted_vlm
from vla_tune.policies.starting import starting_policy
from vla_tune.policies.weights import weights_digest
from vla_tune.vlm.loading import load_vlm
from vla_tune.vlm.parts import linears, vlm_group_of, with_block_linears
from vla_tune.vqa.dataset import vqa_questions

if TYPE_CHECKING:
    from vla_tune.geometry.gaussian import Moments
    from vla_tune.geometry.subspace import SecondMoment, SketchedMoment

FILE = "anchor.safetensors"
SUBSPACE_FILE = "subspace.safetensors"
ENERGIES = (0.9, 0.95, 0.99, 0.999)
"""Where `subspace.json` says what is left free, and how far VQA and robot features overlap."""
SHOWN = (0.9, 0.99)
"""Those of them that the console shows."""


def run(config: Config, run: Path, *, overwrite: bool = False) -> Artifact:
    """Take the statistics of the starting policy's VLM over `anchor.samples` questions and write `RUN/anchor`."""
    with Draft(run / "anchor", "anchor", overwrite=overwrite) as draft:
        return _take(on_device(config), draft)


def _take(config: Config, draft: Draft) -> Artifact:
    began = time.perf_counter()
    questions = vqa_questions(config.anchor.manifest or config.vqa.manifest, "anchor", config.anchor.samples)
    policy, base = starting_policy(config)
    adapter = adapt(policy)
    trained = [name for name, module in linears(adapter.vlm).items() if module.weight.requires_grad]
    looked_at = trained if not config.stream.tasks else with_block_linears(adapter.vlm, trained)
    vlm, processor = grafted_vlm(policy, base)
    moments = policy_moments(adapter, questions, config.anchor.batch_size)
    nn.Module.to(vlm, config.device)
    read = _inputs(config.anchor)
    with read.watching(vlm, looked_at):
        stock = stock_moments(vlm, processor, questions, config.anchor.batch_size, "anchor, Hugging Face path", read)
    inputs = _directions(read.moments, config.anchor)
    felt = OutputGradients(config.anchor.exact_width, config.anchor.rank)
    if config.anchor.gradients:
        asked = questions.select(range(min(config.anchor.gradients, len(questions))))
        with felt.watching(vlm, trained):
            answer_gradients(vlm, processor, asked, config.anchor.batch_size, felt)
    outputs = _directions(felt.moments, config.anchor)
    robot, robot_read = _robot_frames(config, looked_at)
    identity = {
        "layers": len(moments),
        "stock_layers": len(stock),
        "width": adapter.width,
        "backbone": weights_digest(adapter.vlm.state_dict()),
        "base": weights_digest(load_vlm(base)[0].state_dict()),
    }
    tensors = {**tensors_of(moments), **tensors_of(stock, STOCK), **tensors_of(robot, ROBOT)}
    save_file(tensors, draft.path / FILE, metadata={name: str(value) for name, value in identity.items()})
    layers = _save_subspace(draft.path, inputs, outputs, read, robot_read)
    _show_subspace(layers)
    metrics = {
        "samples": len(questions),
        "tokens": moments[0].count,
        "stock_tokens": stock[0].count,
        "robot_tokens": robot[0].count if robot else 0,
        "subspace_bytes": (draft.path / SUBSPACE_FILE).stat().st_size,
        "seconds": round(time.perf_counter() - began, 2),
        **identity,
    }
    say(f"anchor: {len(moments)} layers of {adapter.width}, {moments[0].count} tokens of {len(questions)} questions")
    return draft.publish(config=config.to_dict(), inputs=[], metrics=metrics, device=config.device)


def _inputs(config: AnchorConfig) -> LinearInputs:
    return LinearInputs(config.exact_width, config.rank)


def _robot_frames(config: Config, layers: list[str]) -> tuple[list[Moments], LinearInputs]:
    """The same statistics over `anchor.frames` frames of the demonstrations; nothing where there are none."""
    from vla_tune.anchors.frames import frame_moments
    from vla_tune.data.loader import as_floats, make_loader
    from vla_tune.learners.start import make_start

    read = _inputs(config.anchor)
    if not config.anchor.frames or not (config.data.manifest or config.data.repo_id):
        return [], read
    # Of no seed and no training batch: an anchor serves all runs on the same data.
    config = dataclasses.replace(config, seed=0, train=dataclasses.replace(config.train, batch_size=config.anchor.batch_size))
    start = make_start(config)
    adapter = adapt(start.policy.eval())
    size, frames = config.anchor.batch_size, config.anchor.frames
    counts = [min(size, frames - begun) for begun in range(0, frames, size)]
    loaded = zip(make_loader(config, start.dataset, 0), counts, strict=False)
    batches = (start.processors[0](as_floats({key: part[:count] for key, part in batch.items()})) for batch, count in loaded)
    with read.watching(adapter.vlm, layers):
        return frame_moments(adapter, batches, len(counts), read), read


def _directions(moments: dict[str, SecondMoment | SketchedMoment], config: AnchorConfig) -> dict[str, Directions]:
    """What is stored of each second moment, which is let go of: together they can be larger than the VLM."""
    found = {}
    for name in list(moments):
        moment = moments.pop(name)
        values, vectors = moment.principal()
        kept = min(rank_of(values, config.energy, moment.energy), config.rank)
        found[name] = Directions(vectors[:, :kept].float().cpu().contiguous(), values.float().cpu(), moment.energy)
    return found


def _save_subspace(
    folder: Path, inputs: dict[str, Directions], outputs: dict[str, Directions], read: LinearInputs, robot: LinearInputs
) -> list[dict[str, Any]]:
    """Write the kept eigenvectors, and per input how much of it they are and how much of the robot's features they hold.

    `{layer}.basis` (float32 `[width, kept]`, a direction a column, the strongest first), `{layer}.values` (float32, all
    eigenvalues) and `{layer}.energy` by the first reader of an input; `{layer}.outputs.*` likewise, by layer, of the answers'
    gradients at its outputs; `tokens` (int64 `[vocabulary]`, how often each was read); who reads which input is the metadata `reads`.
    """
    tensors: dict[str, Tensor] = {} if read.tokens is None else {"tokens": read.tokens.cpu()}
    layers = []
    for name, directions in inputs.items():
        tensors |= _tensors(name, directions)
        readers = [reader for reader, first in read.reads.items() if first == name]
        felt_by = [outputs[reader] for reader in readers if reader in outputs]
        width, kept = directions.basis.shape
        bases = {str(energy): directions.leading(energy) for energy in ENERGIES}
        seen = getattr(robot.moments.get(name), "total", None)
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
    for name, directions in outputs.items():
        tensors |= _tensors(f"{name}.outputs", directions)
    save_file(tensors, folder / SUBSPACE_FILE, metadata={"reads": json.dumps(read.reads)})
    write_json(folder / "subspace.json", {"energies": list(ENERGIES), "layers": layers})
    return layers


def _tensors(prefix: str, directions: Directions) -> dict[str, Tensor]:
    return {
        f"{prefix}.basis": directions.basis,
        f"{prefix}.values": directions.values,
        f"{prefix}.energy": torch.tensor(directions.energy),
    }


def _free_pairs(inputs: Directions, outputs: list[Directions], energy: float) -> float | None:
    """The share of the pairs of directions that the layers which read an input have free; None where too little is stored to tell."""
    if not outputs or energy > inputs.share * min(one.share for one in outputs):
        return None
    protected = sum(int(protected_pairs(one, inputs, energy).sum()) for one in outputs)
    return 1 - protected / (len(inputs.basis) * sum(len(one.basis) for one in outputs))


def _show_subspace(layers: list[dict[str, Any]]) -> None:
    """Means by the part of the VLM: what is left free, and how much of the robot's features is not."""
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
