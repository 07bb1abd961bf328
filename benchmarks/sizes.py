"""The two sizes that steps are measured at: the demo's, and a text model 576 wide and 30 deep."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from vla_tune.config import Config, load_config
from vla_tune.resources import demo_vlm

TEXT = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49280,
}
"""SmolVLM2-256M's text model."""
TEXT_TOKENS = 48
"""Beside the 16 tokens of a picture of the demo's size."""
FEW_QUESTIONS = ("anchor.samples=100", "anchor.gradients=50")
"""So many are enough to tell how many directions are protected."""


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
    return demo(f"policy.base_vlm={folder}", "train.batch_size=8", *text, *FEW_QUESTIONS)
