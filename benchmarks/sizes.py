"""The two sizes that steps are measured at, each with an anchor: the demo's, and a text model 576 wide and 30 deep."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from vla_tune.anchors.artifact import Anchor
from vla_tune.anchors.directions import Directions, Subspace
from vla_tune.artifacts.record import Artifact
from vla_tune.config import Config, load_config
from vla_tune.geometry.subspace import rank_of
from vla_tune.resources import demo_vlm
from vla_tune.vlm.parts import linears

WIDTH, DEPTH = 576, 30
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 1536,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49280,
}
"""SmolVLM2-256M's text model."""
TEXT_TOKENS = 48
"""Beside the 16 tokens of a picture of the demo's size."""
STORED, RANK = 0.999, 1 / 3
"""The share of energy that made-up directions carry; the share of directions that carry 0.995, what `energy=0.99` protects of a side."""
FIRST_READER = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
"""Layers that read another's input."""


@dataclass(frozen=True)
class MadeUpAnchor(Anchor):
    """An anchor that was taken of nothing."""

    made: Subspace

    @property
    def subspace(self) -> Subspace:  # type: ignore[override]
        """Random directions."""
        return self.made


def demo(*more: str) -> Config:
    """The demo's configuration, which reads no more frames than are asked for."""
    return load_config("demo", ["data.workers=0", "data.cache_mb=0", "anchor.frames=0", *more])


def larger(folder: Path) -> Config:
    """A VLM of random weights, written into `folder`, with the demo's data: batches of 8, 64 tokens of text and picture."""
    shutil.copytree(demo_vlm(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= TEXT
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    text = [f"policy.settings.tokenizer_max_length={TEXT_TOKENS}", "policy.settings.pad_language_to=max_length"]
    return demo(f"policy.base_vlm={folder}", "train.batch_size=8", *text)


def made_up_anchor(folder: Path) -> Anchor:
    """Of the VLM in `folder`: random orthonormal directions whose energy falls off so that a third of them carry nearly all of it."""
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        vlm = AutoModelForImageTextToText.from_config(config)
    draw = torch.Generator().manual_seed(0)
    bases: dict[int, Tensor] = {}
    reads, inputs, outputs = {}, {}, {}
    for name, layer in linears(vlm).items():
        if layer is vlm.get_output_embeddings():  # lerobot freezes it
            continue
        parent, _, kind = name.rpartition(".")
        first = reads[name] = ".".join(filter(None, (parent, FIRST_READER.get(kind, kind))))
        rows, width = layer.weight.flatten(1).shape
        if first not in inputs:
            inputs[first] = _directions(width, bases, draw)
        outputs[name] = _directions(rows, bases, draw)
    tokens = torch.zeros(config.text_config.vocab_size, dtype=torch.int64)
    mean, std = [torch.zeros(WIDTH)] * DEPTH, [torch.ones(WIDTH)] * DEPTH
    artifact = Artifact(folder, {"config": {"anchor": {"energy": STORED}}, "metrics": {}})  # type: ignore[typeddict-item]
    return MadeUpAnchor(artifact, mean, std, mean, std, None, None, "", Subspace(inputs, outputs, reads, tokens))


def _directions(width: int, bases: dict[int, Tensor], draw: torch.Generator) -> Directions:
    """One random basis of a width; each layer has its own copy, as it would of its own directions."""
    values = torch.exp(torch.arange(width) * (torch.log(torch.tensor(0.005)) / (RANK * width)))
    energy = float(values.sum())
    if width not in bases:
        bases[width] = torch.linalg.qr(torch.randn(width, width, generator=draw))[0]
    kept = rank_of(values, STORED, energy)
    return Directions(bases[width][:, :kept].T.contiguous().T, values, energy)
