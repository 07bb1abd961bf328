"""`train --plan`: what a run would hold in memory at its peak, phase by phase, before there are weights or data.

A training step is made on tensors without values, by the same code that trains, and what it holds is counted.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vla_tune.anchors.memory import Footprint
from vla_tune.anchors.plan import QuestionSize, planned_bytes
from vla_tune.anchors.stand_in import pairs_bytes, stand_in
from vla_tune.anchors.taking import Layers
from vla_tune.console import say, table
from vla_tune.engine.state import copied
from vla_tune.engine.step import Step
from vla_tune.errors import UserError
from vla_tune.learners.planned import Blueprint, Planned
from vla_tune.methods import method_class
from vla_tune.methods.base import Method
from vla_tune.vlm.loading import quiet
from vla_tune.vlm.parts import linears
from vla_tune.vlm.shapes import without_values
from vla_tune.vqa.sizes import SizedQuestions, example_question

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vla_tune.anchors.artifact import Anchor
    from vla_tune.config import Config

MEASURED_PARTS = 2
"""Micro-batches that are looked at; the later ones hold what the second does."""
LEAST = 50_000
"""Bytes; what is smaller is not shown."""
ALLOCATOR = 0.25
"""What the C library's allocator holds beside what lives, as a share of all that comes and goes: weights while they are made, gradients
and activations. With glibc it was 0.13 to 0.3, in nine measurements from the demo's size to 450 million parameters, once two steps
were done. A GPU's allocator is not counted."""
LIBRARIES = 70_000_000
"""Bytes that libraries load or set aside with the first step on the CPU: code, threads, buffers."""
UNUSED = "held by the allocator and libraries"
Question = dict[str, "Tensor"]


@dataclass(frozen=True)
class Phase:
    """What a stretch of a run holds at its peak, in bytes, by what it is; `host`: on the CPU whatever the device is."""

    name: str
    parts: dict[str, int]
    host: bool = False

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Plan:
    """What a run would take.

    method: as it would train, without values. anchor: each pass of `vla-tune anchor`; empty where the method needs none.
    most: whether the anchor that it needs is not here, so that what it holds of one is the most it can be.
    """

    phases: list[Phase]
    anchor: dict[str, int]
    method: Method
    most: bool

    def peak(self, device: str) -> Phase:
        """The phase that needs the most memory of a device."""
        return max((one for one in self.phases if device == "cpu" or not one.host), key=lambda phase: phase.total)


def plan(config: Config, made_by: Blueprint, anchor: Path | None) -> Plan:
    """Plan plain training.

    Args:
        config: with the device that it would run on; everything is counted as on the CPU.
        made_by: the policy.
        anchor: the folder of the anchor where a method needs one and it is here.

    Raises:
        UserError: lerobot cannot make the policy, or the method cannot train it.

    """
    kind = method_class(config.method.name)
    question = _question(config, made_by) if kind.needs_anchor or kind.needs_memory else None
    with without_values():
        vlm = _whole_vlm(made_by)
        with Footprint("cpu") as making:
            learner = Planned(config, made_by)
        weights = _bytes(learner.model)
        vlm = vlm or _bytes(learner.adapter.vlm)
        layers = [name for name, module in linears(learner.adapter.vlm).items() if module.weight.requires_grad]
        known = _anchor(learner, layers, config, anchor) if kind.needs_anchor else None
        with Footprint("cpu") as holding, quiet():
            method = _method(config, learner, known, question)
        held = holding.kept + _held(config, known, here=anchor is not None)
        phases = _steps(config, learner, method, weights, held) if kind.trains else []
    data = {"demonstrations in memory": made_by.dataset_bytes} if config.device == "cpu" else {}
    phases = [dataclasses.replace(one, parts=one.parts | data) for one in phases]
    read = {"weights as read": weights} if config.policy.path else {"starting VLM": vlm}
    made = {**read, "policy": making.kept, "temporary": making.most - making.kept}
    left = {"parameters": weights, _kept_by(method): held, **data} if config.device == "cpu" else {}
    phases = [Phase("making the policy", made, host=True), *phases, Phase("export", {**left, "VLM at full depth": vlm}, host=True)]
    passes = _passes(config, made_by, layers, question, weights) if kind.needs_anchor and question else {}
    return Plan(phases, passes, method, known is not None and anchor is None)


def _question(config: Config, made_by: Blueprint) -> Question | None:
    """One question as the VLM takes it; None where its processor is not here.

    Raises:
        UserError: the method reads questions while it trains.

    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(made_by.base) if made_by.base else None
    except (OSError, ValueError):
        processor = None
    if processor is not None:
        return example_question(processor, config.vqa.manifest)
    if method_class(config.method.name).needs_memory:
        raise UserError(f"method '{config.method.name}' reads questions: it can be planned once the processor of policy.base_vlm is here")
    return None


def _whole_vlm(made_by: Blueprint) -> int:
    """The base VLM's weights in float32, in bytes; 0 where its configuration is not here."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    if made_by.base is None:
        return 0
    return _bytes(AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(made_by.base), dtype=torch.float32))


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _anchor(learner: Planned, layers: list[str], config: Config, folder: Path | None) -> Anchor:
    vlm: Any = learner.adapter.vlm
    depth, blocks = vlm.config.get_text_config().num_hidden_layers, len(learner.adapter.layers())
    return stand_in(vlm, layers, depth, blocks, learner.adapter.width, config.anchor, folder)


def _method(config: Config, learner: Planned, anchor: Anchor | None, question: Question | None) -> Method:
    kind = method_class(config.method.name)
    if not kind.trains:  # it mixes the weights of two policies, and keeps one
        learner.model.requires_grad_(requires_grad=False)
        return Method(learner, config.method)
    settings = dataclasses.replace(config.method, ewc=dataclasses.replace(config.method.ewc, samples=1))
    memory = SizedQuestions(question) if kind.needs_memory and question else None
    return kind(learner, settings, anchor, memory)


def _held(config: Config, anchor: Anchor | None, *, here: bool) -> int:
    """The bytes that a method holds of an anchor."""
    if anchor is None or config.method.name != "subspace":
        return 0
    known = anchor.subspace
    held = sum(one.basis.nbytes for side in (known.inputs, known.outputs) for one in side.values())
    return held + (pairs_bytes(known) if not here and config.method.subspace.sides == "both" else 0)


def _steps(config: Config, learner: Planned, method: Method, weights: int, held: int) -> list[Phase]:
    """The second of two steps: the optimizer's state is there from the start."""
    parts = min(config.train.accumulate, MEASURED_PARTS)
    size = config.train.batch_size // config.train.accumulate * parts
    method.begin(0)
    optimizer, scheduler, clip = learner.optimizer(method.parameter_groups(config.train.lr))
    at_update: list[int] = []

    def note(*_: Any) -> None:
        at_update.append(steps.most)
        steps.most = steps.now  # from here on, of the update

    optimizer.register_step_pre_hook(note)
    with Footprint("cpu") as steps:
        Step(method, optimizer, scheduler, clip, parts)(learner.batch(size))
    (passes,) = at_update
    trained = sum(parameter.nbytes for parameter in method.parameters())
    state = sum(value.nbytes for one in optimizer.state.values() for value in one.values() if isinstance(value, torch.Tensor))
    extras = steps.kept - state  # what a method keeps from one step to the next
    whole = sum(tensor.nbytes for tensor in learner.batch(1).values()) * (config.train.batch_size - size)
    always = {"parameters": weights + _bytes(method.extras), "optimizer state": state, _kept_by(method): held + max(extras, 0)}
    with Footprint("cpu") as copying:
        _copy = copied([method.state_dict(), optimizer.state_dict()])
    gradients = min(trained, passes)
    activations = f"activations, {config.train.batch_size // config.train.accumulate} samples at once"
    moving = {"gradients": gradients, activations: passes - gradients + whole}
    updating = {"gradients": trained, "temporary": max(steps.most - state - trained, 0) + whole}
    meanwhile = moving if config.train.checkpoint_every < config.train.steps else {}
    return [
        *(
            Phase(name, always | own | _unused(config, weights + sum(own.values())))
            for name, own in (("forward and backward", moving), ("update", updating))
        ),
        _checkpoint(config, {**always, **meanwhile}, copying.kept),
    ]


def _checkpoint(config: Config, lasting: dict[str, int], copy: int) -> Phase:
    """While the copy of a checkpoint is written: training goes on, or is over."""
    beside = {**lasting, UNUSED: LIBRARIES} if config.device == "cpu" else {}
    return Phase("checkpoint", {**beside, "copy that is written": copy}, host=True)


def _unused(config: Config, moving: int) -> dict[str, int]:
    return {UNUSED: round(ALLOCATOR * moving) + LIBRARIES} if config.device == "cpu" else {}


def _kept_by(method: Method) -> str:
    return f"kept by {method.learner.config.method.name}"


def _passes(config: Config, made_by: Blueprint, layers: list[str], question: Question, weights: int) -> dict[str, int]:
    from transformers import AutoConfig

    whole = AutoConfig.from_pretrained(str(made_by.base))
    return planned_bytes(whole, Layers(layers, layers), config.anchor, QuestionSize.of(whole, question), weights)


def show_plan(config: Config, made: Plan) -> None:
    """Print the phases, in MB, and which of them needs the most."""
    rows = []
    for phase in made.phases:
        parts = [(name, size) for name, size in phase.parts.items() if size >= LEAST]
        place = " (host)" if phase.host and config.device != "cpu" else ""
        rows.append([f"{phase.name}{place}", "", f"{phase.total / 1e6:,.1f}"])
        rows += [["", name, f"{size / 1e6:,.1f}"] for name, size in parts]
    table("memory at the peak of each phase", ["phase", "what", "MB"], rows)
    if made.anchor:
        table(
            "memory of `vla-tune anchor`, at the peak of each pass",
            ["pass", "MB"],
            [[n, f"{s / 1e6:,.1f}"] for n, s in made.anchor.items()],
        )
    if made.most:
        say("the anchor is not here: what the method keeps of it is the most that it can be")
    peak = made.peak(config.device)
    say(f"the most: {peak.total / 1e6:,.1f} MB, {peak.name}")
    say(f"{config.train.steps} steps of {config.train.batch_size} samples; nothing was trained")


def show_groups(method: Method, lr: float) -> None:
    """The table of what trains, group by group, each with its learning rate."""
    rates = {id(p): group.get("lr", lr) for group in method.parameter_groups(lr) for p in group["params"]}
    extras = {f"{name} (beside the policy)": dict(module.named_parameters()) for name, module in method.extras.named_children()}
    rows = []
    for name, parameters in {**method.adapter.groups(), **extras}.items():
        trained = [p for p in parameters.values() if p.requires_grad]
        size, count = sum(p.numel() for p in parameters.values()), sum(p.numel() for p in trained)
        state = "frozen" if not trained else "trains" if count == size else "in part"
        rate = f"{rates[id(trained[0])]:g}" if trained else "-"
        rows.append([name, str(len(parameters)), f"{size:,}", f"{count:,}", rate, state])
    table("what trains", ["group", "tensors", "parameters", "trained", "lr", ""], rows)
