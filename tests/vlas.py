"""Small policies of lerobot's real classes: the same code paths as the published ones, at a width that a test can afford.

lerobot writes pi0's widths, its vocabulary and its tokenizer's Hub id into its code, so those are patched; what is built is
saved in the layout of the Hub.
"""

from __future__ import annotations

import json
import shutil
import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from datasets import Dataset

WORDS = string.ascii_letters + string.digits + string.punctuation + "▁\n"
VOCABULARY = 2048
"""Rows of the policies' table; the VLM's own has 64 more, as PaliGemma's has."""
PICTURE = 56


def small_paligemma(folder: Path) -> Path:
    """A random PaliGemma with a tokenizer of single characters, as a Hub checkout would lie on disk."""
    import torch
    from transformers import GemmaTokenizer, PaliGemmaConfig, PaliGemmaForConditionalGeneration, PaliGemmaProcessor, SiglipImageProcessor

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokenizer = GemmaTokenizer(vocab={token: number for number, token in enumerate([*special, *WORDS])})
    images = SiglipImageProcessor(size={"height": PICTURE, "width": PICTURE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    images.image_seq_length = (PICTURE // 14) ** 2
    processor = PaliGemmaProcessor(images, tokenizer)
    config = PaliGemmaConfig(
        image_token_index=processor.image_token_id,
        projection_dim=32,
        vision_config={"model_type": "siglip_vision_model", "image_size": PICTURE, "vision_use_head": False, **VISION},
        text_config={
            "model_type": "gemma",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "head_dim": 4,
            "vocab_size": VOCABULARY + 64,
        },
    )
    torch.manual_seed(0)
    PaliGemmaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "patch_size": 14,
    "projection_dim": 32,
}


def shrink_pi(patch: pytest.MonkeyPatch, module: str, image_token: int) -> None:
    """Make lerobot's module build its policies as small as `small_paligemma`."""
    from importlib import import_module

    real = import_module(module)
    whole = real.PaliGemmaForConditionalGenerationWithPiGemma

    def small_vlm(config):
        for key, value in VISION.items():
            setattr(config.vision_config, key, value)
        config.text_config.vocab_size, config.image_token_index, config.projection_dim = VOCABULARY, image_token, 32
        return whole(config)

    def small_gemma(variant: str):
        width = {"gemma_2b": 32, "gemma_300m": 16}[variant]
        return real.GemmaConfig(width=width, depth=3, mlp_dim=2 * width, num_heads=8, num_kv_heads=1, head_dim=4)

    patch.setattr(real, "PaliGemmaForConditionalGenerationWithPiGemma", small_vlm)
    patch.setattr(real, "get_gemma_config", small_gemma)


@contextmanager
def small_pi(folder: Path) -> Iterator[Path]:
    """`small_paligemma`, in the Hub's cache under PaliGemma's name, while lerobot builds pi0 and pi0.5 as small."""
    from huggingface_hub.constants import HF_HUB_CACHE

    small_paligemma(folder)
    home = put_into_hub_cache(folder, "google/paligemma-3b-pt-224", Path(HF_HUB_CACHE))
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("pi0", "pi05"):
            shrink_pi(patch, f"lerobot.policies.{kind}.modeling_{kind}", image_token_of(folder))
        yield folder
    shutil.rmtree(home)


def put_into_hub_cache(folder: Path, repo: str, cache: Path) -> Path:
    """As if `repo` had been downloaded; returns where it lies in the cache."""
    home = cache / f"models--{repo.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    (home / "snapshots").mkdir()
    (home / "snapshots" / ("0" * 40)).symlink_to(folder)
    return home


COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (40, 60, 220), "white": (240, 240, 240)}


def colour_questions(folder: Path) -> Path:
    """A folder of noisy one-colour pictures with one question each, 80 to learn from and 40 to test on."""
    import numpy as np
    from PIL import Image

    rng, folder = np.random.default_rng(0), folder / "colours"
    folder.mkdir()
    rows = []
    for number in range(120):
        name = list(COLOURS)[number % len(COLOURS)]
        picture = np.clip(np.array(COLOURS[name]) + rng.normal(0, 20, (PICTURE, PICTURE, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{number}.png")
        split = "train" if number < 80 else "test"
        rows.append({"image": f"{number}.png", "question": "what color is it?", "answer": name, "type": "colour", "split": split})
    (folder / "qa.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def teach(vlm_folder: Path, questions: Dataset, steps: int) -> None:
    """Train a VLM in its folder until it can answer these questions."""
    import torch

    from vla_tune.vlm.batches import answer_loss
    from vla_tune.vlm.loading import load_vlm, save_vlm
    from vla_tune.vqa.replay import ReplayQuestions

    vlm, processor = load_vlm(str(vlm_folder))
    memory = ReplayQuestions(questions, processor, seed=0)
    optimizer = torch.optim.AdamW(vlm.parameters(), lr=3e-3)
    vlm.train()
    for step in range(steps):
        answer_loss(vlm, memory.draw(step, 16)).backward()
        optimizer.step()
        optimizer.zero_grad()
    save_vlm(vlm.eval(), processor, vlm_folder)


def published_smolvlm2(folder: Path) -> Path:
    """SmolVLM2-500M's published shape, without weights, with the tokenizer of the VLM that is shipped."""
    from vla_tune.resources import demo_vlm

    shutil.copytree(demo_vlm(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "head_dim": 64,
        "vocab_size": 49280,
    }
    config["vision_config"] |= {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "patch_size": 16,
        "image_size": 512,
    }
    config["scale_factor"] = 4
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def image_token_of(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text())["image_token_index"])
