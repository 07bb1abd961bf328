"""Every method by its name: what it does, what it needs, and its options under `method.<section>`.

An option is added to its method's class here; a method is a class here (where it has options), a field of `MethodConfig`, an entry
of `METHODS`, and a file of its own. Imports no torch: configurations are read before it is.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field

from vla_tune.fields import option


@dataclass
class FullConfig:
    """Plain fine-tuning."""

    vlm_lr: float = option(1.0, at_least=0, help="the VLM's learning rate as a multiple of train.lr")


@dataclass
class LoRAConfig:
    """The adapters' size."""

    rank: int = option(16, at_least=1, help="rank of the adapters")
    alpha: int = option(32, at_least=1, help="the adapters are scaled by alpha / rank")


@dataclass
class WarmupConfig:
    """The first of two phases."""

    steps: int = option(200, at_least=0, help="how long the action expert trains alone")


@dataclass
class PenaltyConfig:
    """The Wasserstein-2 penalty as a term of the loss."""

    weight: float = option(1.0, at_least=0, help="weight of the penalty")
    whiten: bool = option(True, help="divide each dimension by the anchor's deviation, so that no few of them decide")


@dataclass
class DistillationConfig:
    """The distance to a frozen copy."""

    weight: float = option(0.01, at_least=0, help="weight of the mean squared distance to a frozen copy's hidden states, same robot batch")


@dataclass
class CotrainingConfig:
    """VQA beside the robot's batches."""

    share: float = option(0.1, above=0, at_most=1, help="questions a step, as a share of train.batch_size")
    weight: float = option(1.0, at_least=0, help="weight of the questions' cross-entropy")


@dataclass
class InsulatedConfig:
    """No gradient from the action expert to the VLM, which trains on discretised actions and VQA instead."""

    bins: int = option(32, at_least=1, help="levels of an action dimension")
    share: float = option(0.5, above=0, at_most=1, help="questions a step, as a share of train.batch_size")
    weight: float = option(1.0, at_least=0, help="weight of the questions' cross-entropy")


@dataclass
class AGEMConfig:
    """The questions whose loss must not rise."""

    samples: int = option(256, at_least=1, help="questions that are kept")
    batch_size: int = option(16, at_least=1, help="how many of them give the reference gradient of a step")


@dataclass
class L2SPConfig:
    """The pull to the starting weights."""

    weight: float = option(0.01, at_least=0, help="weight of half the squared distance to the starting weights")


@dataclass
class EWCConfig:
    """The pull to the starting weights, by how much the answers depend on each."""

    weight: float = option(1000.0, at_least=0, help="weight of the Fisher-weighted squared distance to the starting weights")
    samples: int = option(256, at_least=1, help="questions that the Fisher information is taken over")


@dataclass
class WiSEFTConfig:
    """Between two sets of weights; nothing is trained."""

    alpha: float = option(0.5, at_least=0, at_most=1, help="0 is the base VLM, 1 the tuned one")
    path: str | None = option(None, help="the train artifact to interpolate")


@dataclass
class AegisConfig:
    """The published rule, and what each open choice may be instead; docs/methods.md says more of every one."""

    anchor: str = option(
        "vqa", choices=("vqa", "robot"), help="the statistics to stay at: of VQA questions, or of the starting model on robot frames"
    )
    path: str = option(
        "policy", choices=("policy", "stock"), help="the forward that the VQA statistics come from: the policy's own, or the VLM's"
    )
    tokens: str = option("all", choices=("all", "image", "text"), help="those of the prefix that count")
    whiten: bool = option(False, help="divide each channel by the anchor's deviation")
    group: str = option("layer", choices=("layer", "tensor", "model"), help="what one projection spans")
    project: str = option("gradient", choices=("gradient", "update"), help="the task's gradient, or the optimizer's update")
    every: int = option(1, at_least=1, help="steps from one gradient of the penalty to the next; in between the last one is used")
    local: bool = option(False, help="the penalty of a block trains that block alone")
    samples: int = option(0, at_least=0, help="how many tokens of a batch enter the penalty, drawn at random; 0: all")


@dataclass
class SubspaceConfig:
    """What of the VLM must not change."""

    sides: str = option(
        "both",
        choices=("both", "inputs"),
        help="inputs: every layer keeps its outputs on the leading directions of its VQA inputs. both: it keeps those pairs of an input "
        "and an output direction that matter most to the answers; the anchor needs anchor.gradients",
    )
    energy: float = option(
        0.99,
        above=0,
        at_most=1,
        help="the share of its inputs' energy, or (both) of the answers' sensitivity to its inputs, that each layer's protected "
        "directions or pairs carry; at most anchor.energy, or its square",
    )
    project: str = option(
        "both", choices=("both", "gradient", "update"), help="the gradient, the update (the change that the optimizer makes), or both"
    )
    every: int = option(10, at_least=1, help="steps from one projection of the change to the next; the last step's is always projected")


@dataclass
class SharedConfig:
    """One set of experts in every layer that all tasks train."""

    experts: int = option(4, at_least=1, help="experts a layer")
    rank: int = option(4, at_least=1, help="rank of every expert")
    alpha: int = option(8, at_least=1, help="the experts are scaled by alpha / rank")
    top_k: int = option(0, at_least=0, help="how many slots of a router a token uses; 0: all")


@dataclass
class ReplayConfig:
    """All weights train, and some samples of every earlier task are seen again."""

    samples: int = option(100, at_least=1, help="how many samples of each earlier task are kept")
    share: float = option(0.5, at_least=0, at_most=1, help="how many of them come beside a step's own samples, and what their loss counts")


@dataclass
class MoEAdaptersConfig:
    """Adapters with a bottleneck, and a router for each task."""

    experts: int = option(2, at_least=1, help="experts a task and block")
    width: int = option(64, at_least=1, help="width of an adapter's bottleneck")
    top_k: int = option(2, at_least=1, help="how many experts a sample uses")


@dataclass
class IGSPConfig:
    """The mixture of low-rank experts, and how each task finds its own (docs/continual.md)."""

    rank: int = option(4, at_least=1, help="rank of every expert")
    alpha: int = option(8, at_least=1, help="the experts are scaled by alpha / rank")
    top_k: int = option(0, at_least=0, help="how many slots of a router a token uses; 0: all")
    candidates: int = option(2, at_least=1, help="new experts a task and layer in phase 1")
    price: float = option(0.03, at_least=0, help="price of the routing probability that goes to the candidates")
    check_every: int = option(10, at_least=1, help="steps from one look at the routers to the next")
    agreement: float = option(0.9, above=0, at_most=1, help="the share of tokens whose first choice must have stayed for phase 1 to end")
    least: int = option(20, at_least=0, help="phase 1 does not end before this step")
    most: float = option(0.5, above=0, at_most=1, help="phase 1 takes this share of a task's steps at most")
    threshold: float = option(
        0.9, at_least=0, help="experts with a mean probability of less than this many times an equal share are pruned"
    )
    pruning: str = option("probability", choices=("probability", "random"), help="which experts are pruned; random: as many of them")
    sharing: str = option(
        "all",
        choices=("all", "none", "similar"),
        help="which old experts a task may use; similar: those of the one task that looks most similar",
    )
    routing: str = option(
        "token",
        choices=("token", "task"),
        help="in phase 2 by token, or an expert counts the same for the whole task: one learnt number in its router's place",
    )
    orthogonal: float = option(
        0.0, at_least=0, help="weight of an explicit term that holds new experts' inputs apart from old ones'; 0: none"
    )
    protect: float = option(
        0.0,
        at_least=0,
        at_most=1,
        help="the share of its VQA inputs' energy that new experts of a VLM's layer do not see, from the anchor; 0: none",
    )


@dataclass
class MethodConfig:
    """Which method learns, and the options of each, by name; only the chosen one's are read."""

    name: str = option("full", help="the method; with stream.tasks, one that learns a stream")
    full: FullConfig = field(default_factory=FullConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    penalty: PenaltyConfig = field(default_factory=PenaltyConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    cotraining: CotrainingConfig = field(default_factory=CotrainingConfig)
    insulated: InsulatedConfig = field(default_factory=InsulatedConfig)
    agem: AGEMConfig = field(default_factory=AGEMConfig)
    l2sp: L2SPConfig = field(default_factory=L2SPConfig)
    ewc: EWCConfig = field(default_factory=EWCConfig)
    wise_ft: WiSEFTConfig = field(default_factory=WiSEFTConfig)
    subspace: SubspaceConfig = field(default_factory=SubspaceConfig)
    aegis: AegisConfig = field(default_factory=AegisConfig)
    shared: SharedConfig = field(default_factory=SharedConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    moe_adapters: MoEAdaptersConfig = field(default_factory=MoEAdaptersConfig)
    igsp: IGSPConfig = field(default_factory=IGSPConfig)


Learns = typing.Literal["task", "stream"]
Need = typing.Literal["anchor", "questions", "run"]


@dataclass(frozen=True)
class MethodEntry:
    """What is known of a method without importing it.

    Args:
        does: one line for whoever chooses.
        options: the class of its section of `MethodConfig`; two methods may share one.
        learns: one task, a stream of tasks, or both.
        needs: an anchor artifact, VQA questions with answers, or the finished run of another method.

    """

    does: str
    options: type | None = None
    learns: tuple[Learns, ...] = ("task",)
    needs: tuple[Need, ...] = ()


METHODS = {
    "full": MethodEntry("train all weights on the task alone: the control that forgets", FullConfig, ("task", "stream")),
    "frozen": MethodEntry("train the action expert alone; the VLM stays as it is"),
    "lora": MethodEntry("low-rank adapters on the VLM's text layers, merged at the end", LoRAConfig, ("task", "stream")),
    "warmup": MethodEntry("train the action expert alone first, then everything", WarmupConfig),
    "penalty": MethodEntry("add the Wasserstein-2 distance to the anchor's statistics to the loss", PenaltyConfig, needs=("anchor",)),
    "distillation": MethodEntry("keep the VLM's hidden states on robot batches near a frozen copy's", DistillationConfig),
    "cotraining": MethodEntry("answer VQA questions beside every robot batch", CotrainingConfig, needs=("questions",)),
    "insulated": MethodEntry(
        "keep the action expert's gradient out of the VLM, which learns action tokens and VQA", InsulatedConfig, needs=("questions",)
    ),
    "agem": MethodEntry("take out of the gradient what would make kept VQA questions worse", AGEMConfig, needs=("questions",)),
    "l2sp": MethodEntry("pull the VLM's weights to where they started", L2SPConfig),
    "ewc": MethodEntry("the same, each weight as strongly as the answers depend on it", EWCConfig, needs=("questions",)),
    "wise_ft": MethodEntry("interpolate the weights of the base VLM and of a finished run", WiSEFTConfig, needs=("run",)),
    "aegis": MethodEntry("take out of the gradient what moves the VLM's statistics from the anchor", AegisConfig, needs=("anchor",)),
    "subspace": MethodEntry("change the VLM only where its answers do not depend on it", SubspaceConfig, needs=("anchor",)),
    "lora_per_task": MethodEntry("one low-rank adapter a task: nothing shared, nothing forgotten", LoRAConfig, ("stream",)),
    "replay": MethodEntry("train all weights and see kept samples of every earlier task again", ReplayConfig, ("stream",)),
    "shared": MethodEntry("one set of low-rank experts that all tasks train", SharedConfig, ("stream",)),
    "moe_adapters": MethodEntry("adapters with a router a task; the most used are frozen after it", MoEAdaptersConfig, ("stream",)),
    "igsp": MethodEntry("new low-rank experts where the old ones do not suffice, then fine-tuning of those", IGSPConfig, ("stream",)),
}
"""In the order in which they are listed."""
TASK_METHODS = tuple(name for name, entry in METHODS.items() if "task" in entry.learns)
STREAM_METHODS = tuple(name for name, entry in METHODS.items() if "stream" in entry.learns)


def section_of(name: str) -> str:
    """The section of `MethodConfig` that holds the options of a method; empty where it has none."""
    options: typing.Any = METHODS[name].options if name in METHODS else None
    return next((section.name for section in dataclasses.fields(MethodConfig) if options and section.default_factory == options), "")
