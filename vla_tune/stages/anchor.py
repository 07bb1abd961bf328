"""The anchor: what the VLM's layers look like, and what they read, on VQA questions before anything is trained."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vla_tune.anchors.artifact import SUBSPACE_FILE, write_anchor
from vla_tune.anchors.frames import Frames
from vla_tune.anchors.overview import by_layer, show_parts
from vla_tune.anchors.taking import Layers, take_anchor
from vla_tune.artifacts.folder import Artifact, Draft
from vla_tune.console import say
from vla_tune.errors import out_of_memory_told
from vla_tune.policies import adapt
from vla_tune.policies.devices import on_device
from vla_tune.policies.starting import starting_policy
from vla_tune.policies.weights import weights_digest
from vla_tune.preflight.look import preflight
from vla_tune.vlm.loading import load_vlm
from vla_tune.vlm.parts import linears, with_block_linears
from vla_tune.vqa.dataset import vqa_questions

if TYPE_CHECKING:
    from torch import nn

    from vla_tune.config import Config


def run(config: Config, run: Path, *, overwrite: bool = False) -> Artifact:
    """Take the statistics of the starting policy's VLM over `anchor.samples` questions and write `RUN/anchor`."""
    config = on_device(config)
    if config.anchor.frames:
        preflight(config)
    with Draft(run / "anchor", "anchor", overwrite=overwrite) as draft, out_of_memory_told(config.device, "a smaller anchor.batch_size"):
        return _take(config, draft)


def _take(config: Config, draft: Draft) -> Artifact:
    began = time.perf_counter()
    questions = vqa_questions(config.anchor.manifest or config.vqa.manifest, "anchor", config.anchor.samples)
    policy, base = starting_policy(config)
    adapter = adapt(policy)
    layers = _layers(adapter.vlm, whole_blocks=bool(config.stream.tasks))
    taken = take_anchor(adapter, base, questions, layers, config.anchor, lambda: _frames(config))
    identity = {
        "layers": len(taken.policy),
        "stock_layers": len(taken.stock),
        "width": adapter.width,
        "backbone": weights_digest(adapter.vlm.state_dict()),
        "base": weights_digest(load_vlm(base)[0].state_dict()),
    }
    found = by_layer(taken)
    write_anchor(draft.path, taken, found, identity)
    show_parts(found)
    tokens = taken.policy[0].count
    metrics = {
        "samples": len(questions),
        "tokens": tokens,
        "stock_tokens": taken.stock[0].count,
        "robot_tokens": taken.robot[0].count if taken.robot else 0,
        "subspace_bytes": (draft.path / SUBSPACE_FILE).stat().st_size,
        "seconds": round(time.perf_counter() - began, 2),
        **identity,
    }
    say(f"anchor: {len(taken.policy)} layers of {adapter.width}, {tokens} tokens of {len(questions)} questions")
    return draft.publish(config=config.to_dict(), inputs=[], metrics=metrics, device=config.device)


def _layers(vlm: nn.Module, *, whole_blocks: bool) -> Layers:
    """What trains; with `whole_blocks` all linear layers of the blocks are looked at: a stream's experts go to frozen ones too."""
    known = linears(vlm)
    trained = [name for name, module in known.items() if module.weight.requires_grad]
    return Layers(with_block_linears(vlm, trained) if whole_blocks else trained, trained)


def _frames(config: Config) -> Frames | None:
    """`anchor.frames` frames of the demonstrations that training reads; None where there are none."""
    from vla_tune.data.batches import Order, ordered_batches
    from vla_tune.learners.demonstrations import Demonstrations

    if not config.anchor.frames or not (config.data.manifest or config.data.repo_id):
        return None
    # Of no seed and no precision of the training: an anchor serves all runs on the same data.
    own = dataclasses.replace(config.train, precision="float32", activation_checkpointing=False, compile=False)
    learner = Demonstrations(dataclasses.replace(config, seed=0, train=own))
    trained = learner.frames_of([one for one in learner.chosen if one not in learner.heldout])
    size, count = config.anchor.batch_size, min(config.anchor.frames, len(trained))
    batches = ordered_batches(learner.frames, Order(trained, count, seed=0).rows(0), size)
    learner.model.eval()
    return Frames(learner.adapter, (learner.processed(batch) for batch in batches), size, -(-count // size))
