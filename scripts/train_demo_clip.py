"""Train the demo's CLIP from scratch on drawn pictures (see its model card for the command).

A stock Hugging Face CLIP of 1.3 million parameters. A batch's pictures are matched with the captions of all labels, which is
CLIP's loss with equal captions counted once.
"""

from __future__ import annotations

import argparse
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from vla_tune.data.drawings import FAMILIES, SIZE, TEMPLATES, drawing

WIDTH, HEADS, CONTEXT, VOCABULARY = 128, 4, 32, 1024
ADAM_LR, MUON_LR = 1e-3, 2e-3
STARTS = ("a picture of", "a photo of", "a drawing of", "this is", "an image of", "")
"""What captions begin with."""


def make_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair encoding, its merges learnt from our captions; any other word falls apart into bytes."""
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.train_from_iterator(captions("a photo of") + captions("an image drawing picture this is"), trainer)
    import json

    model = json.loads(tokenizer.to_str())["model"]
    vocab = model["vocab"]
    for letter in pre_tokenizers.ByteLevel.alphabet():  # every byte can end a word
        vocab.setdefault(f"{letter}</w>", len(vocab))
    return CLIPTokenizer(vocab=vocab, merges=[tuple(m) for m in model["merges"]], model_max_length=CONTEXT)


def captions(start: str) -> list[str]:
    """Of every label, in the order of the families."""
    return [
        TEMPLATES[family].format(label).replace("a picture of", start).strip() for family, labels in FAMILIES.items() for label in labels
    ]


def make_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Four layers that see, two that read."""
    shared = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": HEADS, "projection_dim": WIDTH}
    vision = {**shared, "num_hidden_layers": 4, "image_size": SIZE, "patch_size": 8}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = {**shared, **ids, "num_hidden_layers": 2, "vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH, attn_implementation="sdpa"))


def draw(job: tuple[str, str, str, int]) -> np.ndarray:
    """The pictures of one label, uint8."""
    family, label, split, count = job
    return np.stack([np.asarray(drawing(family, label, 0, split, number)) for number in range(count)])


def pictures(split: str, each: int) -> tuple[Tensor, Tensor]:
    """`each` pictures of every label as uint8, and the numbers of their labels."""
    jobs = [(family, label, split, each) for family, labels in FAMILIES.items() for label in labels]
    with ProcessPoolExecutor() as pool:
        drawn = torch.from_numpy(np.concatenate(list(pool.map(draw, jobs)))).permute(0, 3, 1, 2).contiguous()
    return drawn, torch.arange(len(jobs)).repeat_interleave(each)


def main() -> None:
    """Draw, train, test, save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--each", type=int, default=500)
    parser.add_argument("--batch", type=int, default=128)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    images = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=SIZE)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    mean, std = (torch.tensor(values)[:, None, None] for values in (images.image_mean, images.image_std))
    seen, labels = pictures("train", arguments.each)
    held, answers = pictures("test", 30)
    texts = [tokenizer(captions(start), padding=True, return_tensors="pt") for start in STARTS]
    inner = [p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not one for one in inner)]
    optimizers = [
        torch.optim.Muon(inner, lr=MUON_LR, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=ADAM_LR, weight_decay=0.01),
    ]
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(one, one.param_groups[0]["lr"], arguments.steps, pct_start=0.05, cycle_momentum=False)
        for one in optimizers
    ]
    began = time.monotonic()
    for step in range(arguments.steps):
        rows = torch.randint(len(seen), (arguments.batch,))
        batch = (seen[rows].float() / 255 - mean) / std
        logits = model(pixel_values=batch, **texts[step % len(texts)]).logits_per_image
        loss = F.cross_entropy(logits, labels[rows], label_smoothing=0.1)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for one in (*optimizers, *schedules):
            one.step()
        model.logit_scale.data.clamp_(max=4.6052)
        if step % 250 == 249:
            right = evaluate(model, (held.float() / 255 - mean) / std, texts[0], answers)
            print(f"{step + 1} loss {loss.item():.3f} test {right:.3f} {time.monotonic() - began:.0f} s", flush=True)
    shutil.rmtree(arguments.out, ignore_errors=True)
    model.half().save_pretrained(arguments.out)  # half the bytes; loading in float32 gives the same numbers everywhere
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(arguments.out)


@torch.no_grad()
def evaluate(model: CLIPModel, pixels: Tensor, text: dict[str, Tensor], answers: Tensor) -> float:
    """The share of pictures whose caption is found among all."""
    model.eval()
    found = torch.cat([model(pixel_values=part, **text).logits_per_image.argmax(1) for part in pixels.split(256)])
    model.train()
    return (found == answers).float().mean().item()


if __name__ == "__main__":
    main()
