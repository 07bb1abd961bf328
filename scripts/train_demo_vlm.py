"""Train the demo's vision-language model from scratch on drawn scenes (see its model card for the command).

The model is a stock Hugging Face SmolVLM of a few million parameters. Training is made dense so that two CPU cores
are enough: each picture carries many questions and a caption in one packed sequence (every question attends to the
picture and to itself, never to its neighbours), and a linear read-out on the connector's tokens, thrown away
afterwards, tells the vision tower what lies in each cell of the picture.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from demo_vlm_model import CAPTION_REQUEST, GRID, IMAGE_TOKENS, build_model, build_processor
from torch import Tensor, nn
from transformers import SmolVLMForConditionalGeneration, SmolVLMProcessor

from vla_tune.data.scenes import COLOURS, IMAGE_SIZE, QUESTION_TYPES, SHAPES, Scene, picture_hash, sample_scene
from vla_tune.vqa.generator import Question
from vla_tune.vqa.questions import GENERATOR, ask, caption

ADAM_LR, MUON_LR = 2e-3, 3e-3


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one mix of questions and one cycle of the learning rate.

    A relation such as "right of" turns the answer to "left of" around, which leaves no first-order signal to start
    from, and the pictures' tokens need not say where they lie until something asks. So relations come late: places
    are read out and asked for first, and the plain directions before their opposites.

    cooldown: the share of the phase over which the learning rate falls to zero.
    """

    steps: int
    cooldown: float
    questions: tuple[str, ...]
    spatial: bool = False
    plain_directions: bool = False


SPATIAL = ("relation",) * 4 + ("place",) * 3 + tuple(QUESTION_TYPES)
PHASES = (
    Phase(1800, 0.4, tuple(QUESTION_TYPES) * 2),
    Phase(300, 0.0, SPATIAL, spatial=True, plain_directions=True),
    Phase(300, 0.6, SPATIAL, spatial=True),
)


class CellReadout(nn.Module):
    """Linear read-out of each connector token: whether an object's centre lies in its cell, and which object.

    Used while training only; it is what teaches the vision tower quickly.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, 1 + len(COLOURS) + len(SHAPES) + 2)
        self.place = nn.Linear(width, IMAGE_TOKENS)

    def forward(self, tokens: Tensor, cells: Tensor, *, places: bool) -> Tensor:
        """The summed loss; `places`: also of which cell a token is.

        tokens [B, 16, width]; cells [B, 16, 4] integers: present, colour, shape, size.
        """
        present, colour, shape, size = self.head(tokens).split([1, len(COLOURS), len(SHAPES), 2], dim=-1)
        there = cells[..., 0] == 1
        loss = F.binary_cross_entropy_with_logits(present[..., 0], cells[..., 0].float())
        for logits, target in ((colour, 1), (shape, 2), (size, 3)):
            loss = loss + F.cross_entropy(logits[there], cells[..., target][there])
        if places:
            loss = loss + F.cross_entropy(self.place(tokens[there]), there.nonzero()[:, 1])
        return loss


def cells_of(scene: Scene) -> np.ndarray:
    """What `CellReadout` is asked to read: [16, 4] integers (present, colour, shape, size)."""
    cells = np.zeros((IMAGE_TOKENS, 4), dtype=np.int64)
    side = IMAGE_SIZE / GRID
    for item in scene.objects:
        where = int(item.y // side) * GRID + int(item.x // side)
        cells[where] = (1, list(COLOURS).index(item.colour), SHAPES.index(item.shape), int(item.size == "large"))
    return cells


def place(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Where an object is, as a column and a row; None where every object has a double."""
    names = [f"{item.colour} {item.shape}" for item in scene.objects]
    single = [item for item, name in zip(scene.objects, names, strict=True) if names.count(name) == 1]
    if not single:
        return None
    item = single[rng.integers(len(single))]
    column, row = (int(value * GRID / IMAGE_SIZE) for value in (item.x, item.y))
    return Question("place", f"where is the {item.colour} {item.shape}?", f"{column} {row}")


class Packer:
    """Packs a picture, a caption and many questions into one sequence with a block mask."""

    def __init__(self, processor: SmolVLMProcessor, length: int = 230) -> None:
        self.processor, self.length = processor, length
        self._branches: dict[tuple[str, str], tuple[list[int], int]] = {}
        content = [{"type": "image"}, {"type": "text", "text": "{}"}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        start, self._rest = prompt.split("{}")
        text = processor.expand_text_with_image_tokens([start], [[0]], [[0]])[0]
        self.prefix = processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    def branch(self, question: str, answer: str) -> tuple[list[int], int]:
        """Token ids of `question ... answer <eos>` and how many of them are the prompt."""
        if (question, answer) not in self._branches:
            encode = self.processor.tokenizer
            prompt = encode(question + self._rest, add_special_tokens=False)["input_ids"]
            reply = encode(f" {answer}{encode.eos_token}", add_special_tokens=False)["input_ids"]
            self._branches[question, answer] = (prompt + reply, len(prompt))
        return self._branches[question, answer]

    def pack(self, described: str, questions: Iterable[Question]) -> tuple[np.ndarray, ...]:
        """The caption and as many questions as there is room for: ids, positions, segments, labels and loss weights, each [length]."""
        ids = np.full(self.length, self.processor.tokenizer.pad_token_id)
        positions = np.zeros(self.length, dtype=np.int64)
        segments = np.full(self.length, -1)
        labels = np.full(self.length, -100)
        weights = np.zeros(self.length, dtype=np.float32)
        start = len(self.prefix)
        ids[:start], positions[:start], segments[:start] = self.prefix, np.arange(start), 0
        at = start
        branches = [(*self.branch(CAPTION_REQUEST, described), 0.15)]
        branches += [(*self.branch(question.text, question.answer), 1.0) for question in questions]
        for segment, (tokens, prompt, weight) in enumerate(branches, start=1):
            end = at + len(tokens)
            if end > self.length:
                break
            ids[at:end], positions[at:end], segments[at:end] = tokens, np.arange(start, start + len(tokens)), segment
            labels[at + prompt - 1 : end - 1] = tokens[prompt:]
            weights[at + prompt - 1 : end - 1] = weight
            at = end
        return ids, positions, segments, labels, weights


def asked_in(phase: Phase, scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    """The questions of a phase about a scene, in random order."""
    for kind in rng.permutation(phase.questions):
        question = place(scene, rng) if kind == "place" else ask(scene, kind, rng)
        if question and not (phase.plain_directions and (" right of " in question.text or " below " in question.text)):
            yield question


@dataclass
class Batch:
    """Pictures `[B, 3, 64, 64]` in -1..1, their cells, and the packed sequences `[B, length]` (see `Packer.pack`)."""

    pixels: Tensor
    cells: Tensor
    ids: Tensor
    positions: Tensor
    segments: Tensor
    labels: Tensor
    weights: Tensor


def other_splits() -> set[str]:
    """The content hashes of the pictures that no training may see."""
    return {picture_hash(sample_scene(0, split, i).draw()) for split in ("anchor", "test") for i in range(GENERATOR.scenes)}


def drawn_rows(packer: Packer, phase: Phase, seed: int, indices: Iterable[int], test_hashes: set[str]) -> list[tuple[np.ndarray, ...]]:
    """The scenes of the training stream with these indices, less those whose picture is also one of another split."""
    rows: list[tuple[np.ndarray, ...]] = []
    for index in indices:
        scene = sample_scene(seed, "train", index)
        picture = scene.draw()
        if picture_hash(picture) in test_hashes:
            continue
        packed = packer.pack(caption(scene), asked_in(phase, scene, np.random.default_rng([seed, 9, index])))
        rows.append((np.asarray(picture), cells_of(scene), *packed))
    return rows


def batch_of(rows: list[tuple[np.ndarray, ...]]) -> Batch:
    """Pictures, their cells and what `Packer.pack` made of their questions."""
    stacked = [torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)]
    stacked[0] = stacked[0].permute(0, 3, 1, 2).float() / 127.5 - 1
    return Batch(*stacked)


def loss_of(model: SmolVLMForConditionalGeneration, readout: CellReadout, batch: Batch, *, places: bool) -> tuple[Tensor, dict[str, float]]:
    """Answer cross-entropy over the packed questions, plus the read-out's loss."""
    features = model.model.get_image_features(batch.pixels[:, None], return_dict=True).pooler_output
    embeddings = model.model.text_model.get_input_embeddings()(batch.ids)
    embeddings = model.model.inputs_merger(batch.ids, embeddings, features.float())
    causal = torch.ones(batch.ids.shape[1], batch.ids.shape[1], dtype=torch.bool).tril()
    same = (batch.segments[:, :, None] == batch.segments[:, None, :]) | (batch.segments[:, None, :] == 0)
    states = model.model.text_model(
        inputs_embeds=embeddings, attention_mask=(same & causal)[:, None], position_ids=batch.positions, use_cache=False
    ).last_hidden_state
    wanted = batch.labels >= 0
    logits = model.lm_head(states[wanted])
    each = F.cross_entropy(logits.float(), batch.labels[wanted], reduction="none")
    weight = batch.weights[wanted]
    answers = (each * weight).sum() / weight.sum()
    cells = readout(features, batch.cells, places=places)
    hit = (logits.argmax(-1) == batch.labels[wanted]) & (weight == 1) & (batch.labels[wanted] > 5)
    asked = (weight == 1) & (batch.labels[wanted] > 5)
    return answers + 0.3 * cells, {"answers": answers.item(), "cells": cells.item(), "accuracy": (hit.sum() / asked.sum()).item()}


def make_optimizers(model: SmolVLMForConditionalGeneration, readout: CellReadout) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings, head, norms, biases and the read-out."""
    named = {**dict(model.named_parameters()), **dict(readout.named_parameters(prefix="readout"))}
    matrices = [p for name, p in named.items() if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in named.items() if not (p.ndim == 2 and ".layers." in name)]
    return [
        torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.01),
        torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    ]


def phase_at(step: int) -> tuple[Phase, float]:
    """The phase of a step and the share of the peak learning rate: warm-up, constant, then linear to zero."""
    for phase in PHASES:
        if step < phase.steps:
            left = (phase.steps - step) / (phase.cooldown * phase.steps) if phase.cooldown else 1.0
            return phase, min((step + 1) / 100, 1.0, left)
        step -= phase.steps
    raise ValueError(f"training ends {step} steps earlier")


class Trainer:
    """The model, its read-out and their optimizers, saved and resumed together."""

    def __init__(self, out: Path, processor: SmolVLMProcessor, model: SmolVLMForConditionalGeneration) -> None:
        self.out, self.processor, self.model = out, processor, model
        self.readout = CellReadout(model.config.text_config.hidden_size)
        self.parameters = [*model.parameters(), *self.readout.parameters()]
        self.optimizers = make_optimizers(model, self.readout)
        self.peaks = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]

    def step(self, batch: Batch, phase: Phase, share: float) -> dict[str, float]:
        """One update at this share of the peak learning rates."""
        with torch.autocast("cpu", torch.bfloat16):
            loss, shown = loss_of(self.model, self.readout, batch, places=phase.spatial)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * share
            optimizer.step()
            optimizer.zero_grad()
        return shown

    def save(self, step: int) -> None:
        """The model as a stock checkpoint in `out/vlm`, and all that resuming needs in `out/state.pt`."""
        fresh = self.out / "vlm.new"
        self.model.save_pretrained(fresh)
        self.processor.save_pretrained(fresh)
        shutil.rmtree(self.out / "vlm", ignore_errors=True)
        fresh.rename(self.out / "vlm")
        parts = {"model": self.model.state_dict(), "readout": self.readout.state_dict()}
        torch.save({**parts, "optimizers": [o.state_dict() for o in self.optimizers], "step": step}, self.out / "state.new")
        (self.out / "state.new").rename(self.out / "state.pt")

    def resume(self) -> int:
        """Go back to the last save; the number of steps taken so far."""
        if not (self.out / "state.pt").exists():
            return 0
        state = torch.load(self.out / "state.pt")
        self.model.load_state_dict(state["model"])
        self.readout.load_state_dict(state["readout"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return int(state["step"])


def main() -> None:
    """Train, or go on training, and save every `--save-every` steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, default=32, help="pictures a step")
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vision-width", type=int, default=128)
    parser.add_argument("--vision-layers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=250)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    processor = build_processor()
    model = build_model(processor, args.width, args.layers, args.vision_width, args.vision_layers)
    packer = Packer(processor)
    test_hashes = other_splits()
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, vocabulary {len(processor.tokenizer)}", flush=True)
    trainer = Trainer(args.out, processor, model)
    first, began = trainer.resume(), time.perf_counter()
    steps = sum(phase.steps for phase in PHASES)
    for step in range(first, steps):
        phase, share = phase_at(step)
        indices = range(step * args.batch_size, (step + 1) * args.batch_size)
        shown = trainer.step(batch_of(drawn_rows(packer, phase, args.seed, indices, test_hashes)), phase, share)
        if step % 20 == 0:
            seconds = (time.perf_counter() - began) / (step - first + 1)
            print(json.dumps({"step": step, **{k: round(v, 4) for k, v in shown.items()}, "step_s": round(seconds, 3)}), flush=True)
        if (step + 1) % args.save_every == 0 or step + 1 == steps:
            trainer.save(step + 1)


if __name__ == "__main__":
    main()
