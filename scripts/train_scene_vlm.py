"""Go on training the demo's vision-language model until it also answers questions about the robot's own scene.

For the study `scenes`: there, what the VQA questions need to see is what the robot's training changes.

    python scripts/train_scene_vlm.py --out runs/scene-vlm
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from train_demo_vlm import PHASES, Batch, Packer, Trainer, batch_of, cells_of, drawn_rows, other_splits

from vla_tune.console import progress
from vla_tune.data.scenes import Object, Scene
from vla_tune.resources import demo_vlm
from vla_tune.vlm.loading import load_vlm
from vla_tune.vqa.generator import Question
from vla_tune.vqa.questions import caption
from vla_tune.vqa.touch_scenes import ANSWERS, TouchScene, ask_touch, sample_touch_scene

PEAK = 0.3
"""Of the learning rates of the first training."""
TWICE = 2
"""So often is each type asked about a picture, where there is room."""


def as_drawn(scene: TouchScene) -> Scene:
    """The balls as small circles, which the read-out and the caption know."""
    balls = sorted(scene.balls, key=lambda ball: ball.x)
    return Scene(tuple(Object("circle", ball.colour, "small", ball.x, ball.y) for ball in balls), (0, 0, 0))


def asked_about(scene: TouchScene, rng: np.random.Generator) -> list[Question]:
    """Each type `TWICE`, in random order."""
    asked = [ask_touch(scene, kind, rng) for kind in rng.permutation(list(ANSWERS) * TWICE)]
    return [question for question in asked if question]


def main() -> None:
    """Half of each batch are drawn shapes, half the robot's scenes; of these the same few thousand pictures come again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    vlm, processor = load_vlm(str(demo_vlm()))
    packer, trainer, phase = Packer(processor), Trainer(args.out, processor, vlm.train()), PHASES[-1]
    kept_away = other_splits()
    scenes: list[tuple[TouchScene, np.ndarray]] = []
    with progress("robot scenes", args.pictures, "pictures") as counter:
        for index in range(args.pictures):
            scene = sample_touch_scene(args.seed, "train", index)
            scenes.append((scene, np.asarray(scene.draw())))
            counter.advance()

    def batch(step: int) -> Batch:
        rng = np.random.default_rng([args.seed, 10, step])
        rows = []
        for index in rng.integers(len(scenes), size=args.batch_size // 2):
            scene, picture = scenes[index]
            drawn = as_drawn(scene)
            rows.append((picture, cells_of(drawn), *packer.pack(caption(drawn), asked_about(scene, rng))))
        indices = rng.integers(10_000_000, size=args.batch_size - len(rows)).tolist()
        return batch_of(rows + drawn_rows(packer, phase, args.seed, indices, kept_away))

    for step in range(args.steps):
        share = PEAK * min((step + 1) / 50, 1.0, 1.25 * (args.steps - step) / args.steps)
        shown = trainer.step(batch(step), phase, share)
        if step % 20 == 0:
            print(json.dumps({"step": step, **{key: round(value, 4) for key, value in shown.items()}}), flush=True)
    trainer.save(args.steps)


if __name__ == "__main__":
    main()
