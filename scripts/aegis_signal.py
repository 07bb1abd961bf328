"""Why does the published AEGIS rule keep nothing? What its gradient knows about VQA, measured while it trains.

Every `--every` steps of an AEGIS training, on the batch at hand and block by block (means over the blocks are printed):

- the cosine of the task gradient with the penalty's (what the rule acts on) and with that of the VQA answers' loss;
- the cosine of the penalty's gradient with the answers' gradient: whether the penalty points at what must be kept;
- how much a step along the task gradient moves the answers to questions of the *test* split, to first order, layer by layer and in K-FAC's
  approximation: trace(B G A G^T), A and B the second moments of a layer's inputs and of the answers' gradients at its outputs.
  What is left of that after the rule, after the rule with the answers' own gradient in place of the penalty's, after taking out
  the span of k questions' gradients, and after the subspace projection.

    python scripts/aegis_signal.py RUN/anchor [KEY=VALUE ...] --out signal.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vla_tune.anchors.artifact import Subspace, load_anchor, protected_pairs
from vla_tune.anchors.inputs import LinearInputs
from vla_tune.anchors.outputs import OutputGradients
from vla_tune.anchors.passes import answer_gradients, stock_moments
from vla_tune.artifacts.folder import write_json
from vla_tune.config import Config, load_config
from vla_tune.console import progress, table
from vla_tune.engine.step import Step
from vla_tune.geometry.projection import remove_conflict
from vla_tune.geometry.subspace import project_pairs
from vla_tune.learners.demonstrations import Demonstrations
from vla_tune.methods.aegis import Aegis
from vla_tune.methods.base import Gradients, Method
from vla_tune.policies.smolvla import SmolVLAAdapter
from vla_tune.vlm.batches import answer_loss
from vla_tune.vlm.loading import load_vlm
from vla_tune.vqa.dataset import vqa_questions
from vla_tune.vqa.replay import ReplayQuestions

QUESTIONS = 96
JUDGED = 512
"""Questions of the test split."""
SPANS = (1, 8, 64)
"""How many questions' gradients are taken out together."""
ENERGY = 0.99
COLUMNS = {
    "task_penalty": "cos(task, penalty)",
    "task_answers": "cos(task, answers)",
    "penalty_answers": "cos(penalty, answers)",
    "after_rule": "moved after the rule",
    "after_answers": "with the answers' gradient",
    **{f"after_{count}": f"without {count} questions'" for count in SPANS},
    "after_subspace": "after the subspace",
}


def main() -> None:
    """Train by the rule and look every few steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("anchor", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_intermixed_args()
    config = load_config("demo", ["method.name=aegis", "train.steps=300", *given.overrides])
    anchor = load_anchor(given.anchor)
    learner = Demonstrations(config)
    judge = Judge(config, learner.base, list(anchor.subspace.reads))
    memory = ReplayQuestions(vqa_questions(config.vqa.manifest, "anchor"), load_vlm(learner.base)[1], config.seed)
    method = Aegis(learner, config.method, anchor)
    take = Step(method, *learner.optimizer(method.parameter_groups(config.train.lr)))
    batches = learner.batches(0, 0)
    torch.manual_seed(config.seed)
    rows = []
    with progress("aegis", config.train.steps, "steps") as counter:
        for step in range(config.train.steps):
            batch = next(batches)
            if step % given.every == 0:
                rows.append({"step": step, **look(method, memory, batch, anchor.subspace, judge)})
            take(batch)
            counter.advance()
    write_json(given.out, rows)
    table("means over blocks", ["step", *COLUMNS.values()], [[str(row["step"]), *(f"{row[key]:+.4f}" for key in COLUMNS)] for row in rows])


class Judge:
    """How far a change moves the answers to questions that no anchor has seen."""

    def __init__(self, config: Config, base: str, layers: list[str]) -> None:
        vlm, processor = load_vlm(base)
        questions = vqa_questions(config.vqa.manifest, "test", JUDGED)
        inputs = LinearInputs(config.anchor.exact_width, config.anchor.rank)
        outputs = OutputGradients(config.anchor.exact_width, config.anchor.rank)
        with inputs.watching(vlm, layers):
            stock_moments(vlm, processor, questions, config.anchor.batch_size, "judge, inputs", inputs)
        with outputs.watching(vlm, layers):
            answer_gradients(vlm, processor, questions, config.anchor.batch_size, outputs)
        read = {name: moment.principal() for name, moment in inputs.moments.items()}
        self._sides = {layer: (read[first], outputs.moments[layer].principal()) for layer, first in inputs.reads.items()}

    def moved(self, change: Gradients) -> float:
        """Sum of trace(B G A G^T) over the linear layers."""
        total = 0.0
        for name, gradient in change.items():
            layer = name.removeprefix(SmolVLAAdapter.vlm_prefix).removesuffix(".weight")
            if layer in self._sides:
                (inputs, u), (outputs, v) = self._sides[layer]
                total += float(outputs @ (v.T @ gradient.double() @ u).square() @ inputs)
        return total


def look(method: Method, memory: ReplayQuestions, batch: dict[str, Any], known: Subspace, judge: Judge) -> dict[str, float]:
    """The figures of one batch; leaves no gradient behind."""
    terms = method.terms(dict(batch))
    shared = terms["anchor"].into or {}
    task = gradients(terms["task"].value, shared, keep=True)
    penalty = gradients(terms["anchor"].value, shared)
    answers = gradients(answer_loss(method.adapter.vlm, memory.draw(0, QUESTIONS)), shared)
    single = [gradients(answer_loss(method.adapter.vlm, memory.draw(number + 1, 1)), shared) for number in range(max(SPANS))]
    blocks: dict[str, list[str]] = {}
    for name in shared:
        blocks.setdefault(".".join(name.removeprefix(SmolVLAAdapter.vlm_prefix).split(".")[:4]), []).append(name)
    figures: dict[str, list[float]] = {key: [] for key in COLUMNS}
    for names in blocks.values():
        ours = {name: task[name] for name in names}
        figures["task_penalty"].append(cosine(task, penalty, names))
        figures["task_answers"].append(cosine(task, answers, names))
        figures["penalty_answers"].append(cosine(penalty, answers, names))
        whole = judge.moved(ours)
        figures["after_rule"].append(judge.moved(after(ours, penalty)) / whole)
        figures["after_answers"].append(judge.moved(after(ours, answers)) / whole)
        for count in SPANS:
            figures[f"after_{count}"].append(judge.moved(without(ours, single[:count])) / whole)
        figures["after_subspace"].append(judge.moved({name: outside(name, g, known) for name, g in ours.items()}) / whole)
    return {key: sum(values) / len(values) for key, values in figures.items()}


def gradients(loss: Tensor, parameters: dict[str, nn.Parameter], *, keep: bool = False) -> Gradients:
    """Of a loss, by name."""
    found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=keep, allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(parameters.items(), found, strict=True)}


def cosine(left: Gradients, right: Gradients, names: list[str]) -> float:
    """Of the angle between two gradients over some parameters."""
    a, b = (torch.cat([side[name].flatten().double() for name in names]) for side in (left, right))
    return float(a @ b / (a.norm() * b.norm()).clamp(min=1e-300))


def after(task: Gradients, other: Gradients) -> Gradients:
    """What the rule leaves of the task gradient of one block."""
    changed = {name: g.clone() for name, g in task.items()}
    remove_conflict(list(changed.values()), [other[name] for name in changed])
    return changed


def without(task: Gradients, others: list[Gradients]) -> Gradients:
    """What is left of the task gradient of one block outside the span of other gradients."""
    span = torch.linalg.qr(torch.stack([torch.cat([other[name].flatten() for name in task]) for other in others], dim=1))[0]
    whole = torch.cat([g.flatten() for g in task.values()])
    parts = (whole - span @ (span.T @ whole)).split([g.numel() for g in task.values()])
    return {name: part.view_as(g) for (name, g), part in zip(task.items(), parts, strict=True)}


def outside(name: str, gradient: Tensor, known: Subspace) -> Tensor:
    """What the subspace projection leaves of it; norms are held."""
    layer = name.removeprefix(SmolVLAAdapter.vlm_prefix).removesuffix(".weight")
    if layer not in known.reads:
        return torch.zeros_like(gradient)
    inputs, outputs = known.inputs[known.reads[layer]], known.outputs[layer]
    return project_pairs(gradient, outputs.basis, inputs.basis, protected_pairs(outputs, inputs, ENERGY))


if __name__ == "__main__":
    main()
