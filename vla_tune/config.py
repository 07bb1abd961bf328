"""The typed configuration schema, and how a pipeline and its overrides become one `Config`.

A pipeline is a YAML file; every key of it, and every `KEY=VALUE` of the command line, must be a field below. OmegaConf
checks the types; an unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_tune.console import warn
from vla_tune.errors import UserError, nearest
from vla_tune.resources import available, resource

METHODS = (
    "full",
    "frozen",
    "lora",
    "warmup",
    "penalty",
    "distillation",
    "cotraining",
    "insulated",
    "agem",
    "l2sp",
    "ewc",
    "wise_ft",
    "aegis",
    "subspace",
)
"""Each is a file of `vla_tune.methods`."""
STRATEGIES = ("full", "lora", "lora_per_task", "replay", "shared", "moe_adapters", "igsp")
"""What a stream of tasks is learnt by; each is a file of `vla_tune.methods`."""


@dataclass
class PolicyConfig:
    """Which policy is trained.

    path: what `train` starts from, a Hub id or a lerobot policy folder. Without it a new action expert is put on
        `base_vlm`.
    base_vlm: the VLM whose skill counts, a Hub id, a folder, or `demo` (the VLM that is shipped). Default: the starting
        policy's own.
    type: of the policy that is made where there is no `path`: smolvla, pi0, pi05, or one that another package has an adapter for.
    settings: fields of lerobot's configuration of that type, such as `chunk_size`.
    """

    path: str | None = None
    type: str = "smolvla"
    base_vlm: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class DataConfig:
    """The demonstrations: either `manifest` (what we generate) or a LeRobotDataset by `repo_id` and, offline, `root`.

    rename: the dataset's names of pictures or of the state, each with the name that the policy at `policy.path` knows it by.
    heldout: the share of its episodes that training leaves out, to measure the action loss on.
    heldout_frames: on how many of their frames at most, spread evenly; videos are slow to jump about in.
    cache_mb: datasets that need at most this many megabytes once decoded are read into memory before training.
    """

    manifest: str | None = None
    repo_id: str | None = None
    root: str | None = None
    rename: dict[str, str] = field(default_factory=dict)
    heldout: float = 0.0
    heldout_frames: int = 1000
    cache_mb: int = 4000


@dataclass
class AnchorConfig:
    """What is taken from the VLM before it trains, over `samples` VQA questions of a manifest's anchor split.

    manifest: the questions; default: `vqa.manifest`.
    batch_size: the most samples that go at once; fewer where memory is short.
    frames: how many of the demonstrations' frames are read beside them, to tell how far the two overlap; 0: none.
    gradients: on how many of the samples the answers' gradients are taken, which tell what they feel of each layer; 0: none.
    energy: the share of its inputs' energy (and of its outputs' gradients') that the stored directions of each linear layer carry.
    rank: the most directions that are stored of one layer. exact_width: wider layers are sketched, with this rank.
    path: an anchor artifact to use instead.
    """

    manifest: str | None = None
    samples: int = 1000
    batch_size: int = 50
    frames: int = 512
    gradients: int = 512
    energy: float = 0.999
    rank: int = 2048
    exact_width: int = 4096
    path: str | None = None


@dataclass
class FullConfig:
    """`vlm_lr`: the VLM's learning rate as a multiple of `train.lr`."""

    vlm_lr: float = 1.0


@dataclass
class LoRAConfig:
    """Rank and scale (alpha / rank) of the adapters."""

    rank: int = 16
    alpha: int = 32


@dataclass
class WarmupConfig:
    """`steps`: how long the action expert trains alone."""

    steps: int = 200


@dataclass
class PenaltyConfig:
    """The Wasserstein-2 penalty as a term of the loss.

    weight: of the penalty. whiten: divide each dimension by the anchor's deviation, so that no few of them decide.
    """

    weight: float = 1.0
    whiten: bool = True


@dataclass
class DistillationConfig:
    """`weight` of the mean squared distance to a frozen copy's hidden states on the same robot batch."""

    weight: float = 0.01


@dataclass
class CotrainingConfig:
    """VQA beside the robot's batches.

    share: questions a step, as a share of `train.batch_size`. weight: of their cross-entropy.
    """

    share: float = 0.1
    weight: float = 1.0


@dataclass
class InsulatedConfig:
    """No gradient from the action expert to the VLM, which trains on discretised actions and VQA instead.

    bins: levels of an action dimension. share, weight: of the VQA questions, as in co-training.
    """

    bins: int = 32
    share: float = 0.5
    weight: float = 1.0


@dataclass
class AGEMConfig:
    """samples: questions that are kept. batch_size: how many of them give the reference gradient of a step."""

    samples: int = 256
    batch_size: int = 16


@dataclass
class L2SPConfig:
    """`weight` of half the squared distance to the starting weights."""

    weight: float = 0.01


@dataclass
class EWCConfig:
    """weight: of the Fisher-weighted squared distance to the starting weights. samples: questions that Fisher is taken over."""

    weight: float = 1000.0
    samples: int = 256


@dataclass
class WiSEFTConfig:
    """alpha: 0 is the base VLM, 1 the tuned one. path: the train artifact to interpolate; nothing is trained."""

    alpha: float = 0.5
    path: str | None = None


@dataclass
class AegisConfig:
    """The published rule, and what each open choice may be instead; docs/methods.md says more of every one.

    preset: what the other options start from; `paper` is the only one, and their defaults are it.
    anchor: the statistics to stay at, of VQA questions (`vqa`) or of the starting model on robot frames (`robot`).
    path: the forward that the VQA statistics come from, the policy's own (`policy`) or the VLM's (`stock`).
    tokens: those of the prefix that count, `all`, `image` or `text`.
    whiten: divide each channel by the anchor's deviation.
    group: what one projection spans, a `layer`, a `tensor` or the `model`.
    project: the task's `gradient`, or the optimizer's `update`.
    every: steps from one gradient of the penalty to the next; in between the last one is used.
    local: the penalty of a block trains that block alone.
    samples: how many tokens of a batch enter the penalty, drawn at random; 0: all.
    """

    preset: str = "paper"
    anchor: str = "vqa"
    path: str = "policy"
    tokens: str = "all"
    whiten: bool = False
    group: str = "layer"
    project: str = "gradient"
    every: int = 1
    local: bool = False
    samples: int = 0


@dataclass
class SubspaceConfig:
    """What of the VLM must not change.

    sides: `inputs`: every layer keeps its outputs on the leading directions of its VQA inputs. `both`: it keeps those pairs of
        an input and an output direction that matter most to the answers; the anchor needs `anchor.gradients`.
    energy: the share of its inputs' energy, or (`both`) of what the answers feel of its inputs, that each layer's protected
        directions or pairs carry; at most `anchor.energy`, or its square.
    project: `gradient`, `update` (the change that the optimizer makes) or `both`.
    every: steps from one projection of the change to the next; the last step's is always projected.
    """

    sides: str = "both"
    energy: float = 0.99
    project: str = "both"
    every: int = 10


@dataclass
class SharedConfig:
    """One set of `experts` in every layer that all tasks train. rank, alpha, top_k: as for `igsp`."""

    experts: int = 4
    rank: int = 4
    alpha: int = 8
    top_k: int = 0


@dataclass
class ReplayConfig:
    """All weights train; beside a step's samples come `share` times as many of earlier tasks, of each of which `samples` are kept.

    Their loss counts `share` times.
    """

    samples: int = 100
    share: float = 0.5


@dataclass
class MoEAdaptersConfig:
    """experts: a task and block. width: of an adapter's bottleneck. top_k: how many a sample uses."""

    experts: int = 2
    width: int = 64
    top_k: int = 2


@dataclass
class IGSPConfig:
    """The mixture of low-rank experts, and how each task finds its own (docs/continual.md).

    rank, alpha: of every expert; they are scaled by alpha / rank. top_k: how many slots of a router a token uses; 0: all.
    candidates: new experts a task and layer in phase 1. price: of the routing probability that goes to them.
    check_every: steps from one look at the routers to the next. agreement: the share of tokens whose first choice must have stayed
        for phase 1 to end; least: not before this step. most: phase 1 takes this share of a task's steps at most.
    threshold: experts with a mean probability of less than this many times an equal share go.
    pruning: by `probability`, or `random`, as many of them. sharing: which old experts a task may use, `all`, `none`, or those of the
        one task that looks most `similar`.
    routing: in phase 2 by `token`, or an expert counts the same for the whole `task`: one learnt number in its router's place.
    orthogonal: weight of an explicit term that holds new experts' inputs apart from old ones'; 0: none.
    protect: the share of its VQA inputs' energy that new experts of a VLM's layer do not see, from the anchor; 0: none.
    """

    rank: int = 4
    alpha: int = 8
    top_k: int = 0
    candidates: int = 2
    price: float = 0.03
    check_every: int = 10
    agreement: float = 0.9
    least: int = 20
    most: float = 0.5
    threshold: float = 0.9
    pruning: str = "probability"
    sharing: str = "all"
    routing: str = "token"
    orthogonal: float = 0.0
    protect: float = 0.0


@dataclass
class StreamTask:
    """One task of a stream: pictures or questions by their `manifest`, or what a robot does.

    tasks: a robot's, by the names that `rollout.tasks` takes. instructions: whose demonstrations are learnt from; default: theirs.
    """

    name: str
    manifest: str | None = None
    tasks: list[str] = field(default_factory=list)
    instructions: list[str] = field(default_factory=list)


@dataclass
class StreamConfig:
    """Tasks that are learnt one after another, `train.steps` each; without any, training is of one task.

    parts: which parts of the model get experts, of `text`, `vision` and, in a policy, `expert`; empty: all.
    linears: which linear layers of them, by name; empty: all.
    reference: a manifest of samples that belong to no task, on which the model should go on as it was.
    router_width: how many random features tasks are told apart by, of what the frozen model sees (and of a picture's patches).
    router_samples: how many samples of a task, at most, it is learnt to be told by.
    folder: where manifests' relative paths start.
    merged: whether a stock model of each task alone is also saved, its experts merged into its weights.
    """

    tasks: list[StreamTask] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    linears: list[str] = field(default_factory=list)
    reference: str | None = None
    router_width: int = 2048
    router_samples: int = 5000
    folder: str | None = None
    merged: bool = False


@dataclass
class MethodConfig:
    """`name` is one of `METHODS`, or of `STRATEGIES` for a stream; the other fields hold options, by name (`options_of`)."""

    name: str = "full"
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


@dataclass
class TrainConfig:
    """The optimisation; lerobot's optimizer and schedule presets with these values put in.

    path: what the evaluations score, a train artifact or any lerobot policy folder. Default: `RUN/train`.
    """

    steps: int = 1000
    batch_size: int = 32
    lr: float = 1e-4
    warmup_steps: int = 50
    log_every: int = 10
    checkpoint_every: int = 200
    path: str | None = None


@dataclass
class VqaConfig:
    """`questions` of the manifest's test split; intervals by `bootstrap` resamplings over images.

    manifest: a shipped one by its name, yours by its path, or a folder that holds `qa.jsonl` and pictures.
    ranked: how many of the questions, the first ones, are also answered by the likelihood of candidate answers; 0: none.
    """

    manifest: str = "shapes"
    questions: int = 3000
    ranked: int = 300
    batch_size: int = 100
    max_new_tokens: int = 6
    bootstrap: int = 2000


@dataclass
class RolloutConfig:
    """Closed-loop episodes: `episodes` in all, dealt evenly over `tasks`, on seeds from `first_seed` on; in a stream as many of each task.

    tasks: Meta-World's, ours in its scene or LIBERO's (`libero_object/3`), or groups of them (`easy`, `touch`, `libero_object`);
        without any the policy is scored on held-out demonstrations instead (`data.heldout`).
    first_seed: of each task; for LIBERO the number of an initial state.
    step_limit: default: the benchmark's own. image_size: of the pictures; default: what the policy was trained on.
    parallel: episodes whose policy calls share a batch. processes: whether each runs in a process of its own.
    videos: how many episodes are kept as a video, the first of each task first.
    probe: how many episodes, the first of each task first, are also run with a wrong and with an empty instruction.
    compat: `lerobot-eval` runs the episodes as that program does, for the same outcomes on the same seeds.
    """

    tasks: list[str] = field(default_factory=list)
    episodes: int = 60
    first_seed: int = 10_000
    n_action_steps: int = 8
    step_limit: int | None = None
    image_size: int | None = None
    parallel: int = 10
    processes: bool = False
    videos: int = 4
    probe: int = 0
    compat: str | None = None


@dataclass
class Config:
    """A pipeline: everything that the stages read."""

    name: str
    seed: int = 0
    device: str = "cpu"
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    data: DataConfig = field(default_factory=DataConfig)
    anchor: AnchorConfig = field(default_factory=AnchorConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    vqa: VqaConfig = field(default_factory=VqaConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)

    @property
    def pipeline(self) -> str:
        """How a command line names it: a shipped one by its name, one's own by its file."""
        return self.name if self.name in available("pipelines") else f"{self.name}.yaml"

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, as it is written into an artifact."""
        return dataclasses.asdict(self)


AT_LEAST_ONE = (
    "data.heldout_frames",
    "anchor.samples",
    "anchor.batch_size",
    "anchor.rank",
    "anchor.exact_width",
    "method.lora.rank",
    "method.lora.alpha",
    "method.insulated.bins",
    "method.agem.samples",
    "method.agem.batch_size",
    "method.ewc.samples",
    "method.subspace.every",
    "method.aegis.every",
    "method.shared.experts",
    "method.shared.rank",
    "method.shared.alpha",
    "method.replay.samples",
    "method.moe_adapters.experts",
    "method.moe_adapters.width",
    "method.moe_adapters.top_k",
    "method.igsp.rank",
    "method.igsp.alpha",
    "method.igsp.candidates",
    "method.igsp.check_every",
    "stream.router_width",
    "stream.router_samples",
    "train.steps",
    "train.batch_size",
    "train.log_every",
    "train.checkpoint_every",
    "vqa.questions",
    "vqa.batch_size",
    "vqa.max_new_tokens",
    "vqa.bootstrap",
    "rollout.episodes",
    "rollout.n_action_steps",
    "rollout.step_limit",
    "rollout.image_size",
    "rollout.parallel",
)
AT_LEAST_ZERO = (
    "seed",
    "anchor.frames",
    "anchor.gradients",
    "method.warmup.steps",
    "method.aegis.samples",
    "method.shared.top_k",
    "method.igsp.top_k",
    "method.igsp.least",
    "data.cache_mb",
    "train.warmup_steps",
    "vqa.ranked",
    "rollout.first_seed",
    "rollout.videos",
    "rollout.probe",
)

CHOICES = {
    "method.aegis.preset": ("paper",),
    "method.aegis.anchor": ("vqa", "robot"),
    "method.aegis.path": ("policy", "stock"),
    "method.aegis.tokens": ("all", "image", "text"),
    "method.aegis.group": ("layer", "tensor", "model"),
    "method.aegis.project": ("gradient", "update"),
    "method.subspace.project": ("both", "gradient", "update"),
    "method.subspace.sides": ("both", "inputs"),
    "method.igsp.pruning": ("probability", "random"),
    "method.igsp.sharing": ("all", "none", "similar"),
    "method.igsp.routing": ("token", "task"),
    "rollout.compat": ("lerobot-eval",),
}


NOT_NEGATIVE = (
    "method.full.vlm_lr",
    "method.penalty.weight",
    "method.distillation.weight",
    "method.cotraining.weight",
    "method.insulated.weight",
    "method.l2sp.weight",
    "method.ewc.weight",
    "method.igsp.price",
    "method.igsp.threshold",
    "method.igsp.orthogonal",
)
"""Finite numbers from 0 on."""
SHARES = (
    "anchor.energy",
    "method.cotraining.share",
    "method.insulated.share",
    "method.subspace.energy",
    "method.igsp.agreement",
    "method.igsp.most",
)
"""Numbers above 0 and up to 1."""
MOST_SEED = 2**32 - 1
"""Larger ones would not fit where they are multiplied with the numbers of tasks and epochs."""
FRACTIONS = {"data.heldout": 0.5, "method.wise_ft.alpha": 1, "method.igsp.protect": 1, "method.replay.share": 1}
"""Numbers from 0 to this one."""


def load_config(pipeline: str, overrides: list[str] | None = None) -> Config:
    """The pipeline's YAML with the overrides applied.

    Raises:
        UserError: unknown pipeline, unreadable YAML, unknown key, value of a wrong type or out of range.

    """
    file = find_file("pipelines", pipeline, "PIPELINE")
    values = {"name": file.stem, **read_yaml(file)}
    config = structured(Config, values, overrides or [], str(file))
    _check_values(config)
    _warn_of_unused(config.method)
    return config


def find_file(kind: str, name: str, argument: str) -> Path:
    """The file of a shipped name of a kind (`pipelines`, `studies`), or the path of a YAML file; `argument` asked for it."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        if not Path(name).is_file():
            raise UserError(f"{argument}: there is no file {name}")
        return Path(name)
    if name not in available(kind):
        hint = nearest(name, available(kind))
        raise UserError(f"{argument}: there is no shipped {argument.lower()} '{name}'; {hint} (or give the path of a YAML file)")
    return resource(kind, f"{name}.yaml")


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file; a UserError names the file and the line where it cannot be read."""
    import yaml

    try:
        values = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected a mapping of keys to values")
    return values


def structured[T](schema: type[T], values: dict[str, Any], overrides: list[str], source: str) -> T:
    """`values`, then `overrides` (KEY=VALUE), as an instance of the dataclass `schema`.

    Raises:
        UserError: unknown key (with the nearest known one), or a value of a wrong type.

    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    for key in _leaves(values):
        _check_known(schema, key, source)
    merged = OmegaConf.structured(schema)
    where, key = source, ""
    try:
        merged.merge_with(OmegaConf.create(values))
        where = "command line"
        for override in overrides:
            key, equals, _ = override.partition("=")
            if not equals or not key:
                raise UserError(f"'{override}': an override is written KEY=VALUE, for example train.steps=500")
            _check_known(schema, key, where)
            merged.merge_with(OmegaConf.from_dotlist([override]))
        where, key = source, ""
        return typing.cast(T, OmegaConf.to_object(merged))
    except MissingMandatoryValue as error:
        raise UserError(f"{source}: a value is missing: {str(error).splitlines()[0]}") from None
    except TypeError:  # OmegaConf's only word on it, and it names no key
        raise UserError(
            f"{where}: a list stands where a mapping belongs, or a mapping where a list does{f' ({key})' if key else ''}"
        ) from None
    except OmegaConfBaseException as error:
        at = getattr(error, "full_key", None) or key
        raise UserError(f"{where}: {str(error).splitlines()[0]}{f' ({at})' if at else ''}") from None
    except yaml.YAMLError:
        raise UserError(f"{where}: the value of '{override}' is not readable as YAML") from None


def _leaves(values: dict[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in values.items():
        path = f"{prefix}{key}"
        keys += _leaves(value, f"{path}.") if isinstance(value, dict) and value else [path]
    return keys


def _check_known(schema: type, key: str, source: str) -> None:
    """Walk the dotted key down the dataclasses; a plain `dict` field accepts whatever is below it."""
    at, walked = schema, ""
    for part in key.split("."):
        if not dataclasses.is_dataclass(at):
            if at is not Any and typing.get_origin(at) is not dict:
                raise UserError(f"{source}: '{walked[:-1]}' is a single value and has no '{part}' below it")
            return
        fields = typing.get_type_hints(at)
        if part not in fields:
            near = nearest(f"{walked}{part}", [f"{walked}{name}" for name in fields])
            raise UserError(f"{source}: unknown key '{key}'; {near}")
        at, walked = _without_none(fields[part]), f"{walked}{part}."


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(option for option in typing.get_args(hint) if option is not type(None))
    return hint


def value_of(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    at: Any = config
    for part in key.split("."):
        at = getattr(at, part)
    return at


def option_of(config: dict[str, Any], key: str) -> Any:
    """The value of a dotted key of a configuration as an artifact has it; None where it has none."""
    at: Any = config
    for name in key.split("."):
        at = at.get(name) if isinstance(at, dict) else None
    return at


def differences(base: dict[str, Any], config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of `config` whose value is not that of `base`."""
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            changed |= differences(base[key], value, f"{prefix}{key}.")
        elif key not in base or base[key] != value:
            changed[f"{prefix}{key}"] = value
    return changed


def completed(config: dict[str, Any], defaults: dict[str, Any] | None = None) -> dict[str, Any]:
    """An earlier version's configuration with the options that it did not know yet, at their defaults."""
    defaults = Config(name="").to_dict() if defaults is None else defaults
    nested = {
        key: completed(value, defaults[key])
        for key, value in config.items()
        if isinstance(value, dict) and isinstance(defaults.get(key), dict)
    }
    return {**defaults, **config, **nested}


def departures(config: Config, earlier: dict[str, Any], sections: tuple[str, ...], free: list[str]) -> str:
    """Where a configuration departs from an earlier run's in these sections; empty where it does not.

    The keys that are `free` may differ, and what is of other methods.
    """
    now, earlier = config.to_dict(), completed(earlier)
    was, is_now = differences(now, earlier), differences(earlier, now)
    own = own_options(now["method"])
    compared = [
        key
        for key in {**was, **is_now}
        if key.split(".")[0] in sections and key not in free and (not key.startswith("method.") or key.split(".")[1] in own)
    ]
    return ", ".join(f"{key} was {was.get(key)}, is {is_now.get(key)}" for key in compared)


def _check_values(config: Config) -> None:
    for least, keys in ((1, AT_LEAST_ONE), (0, AT_LEAST_ZERO)):
        for key in keys:
            value = value_of(config, key)
            if value is not None and value < least:
                raise UserError(f"{key}={value}: must be at least {least}")
    _check_ranges(config)
    for key, choices in CHOICES.items():
        if value_of(config, key) not in (*choices, None):
            raise UserError(f"{key}={value_of(config, key)}: must be one of {', '.join(choices)}")
    if not 0 < config.train.lr < float("inf"):
        raise UserError(f"train.lr={config.train.lr}: must be a finite number above 0")
    if config.seed > MOST_SEED:
        raise UserError(f"seed={config.seed}: must be at most {MOST_SEED}")
    _check_method(config.method.name, of_stream=bool(config.stream.tasks))
    _check_stream(config.stream)


def _check_method(name: str, *, of_stream: bool) -> None:
    names, others, what = (STRATEGIES, METHODS, "way to learn a stream") if of_stream else (METHODS, STRATEGIES, "method")
    if name in names:
        return
    if name not in others:
        raise UserError(f"method.name={name}: unknown {what}; {nearest(name, list(names))}")
    why = "one task, and stream.tasks lists some" if of_stream else "a stream of tasks, and stream.tasks is empty"
    raise UserError(f"method.name={name}: it learns {why}; known here: {', '.join(names)}")


def _check_stream(stream: StreamConfig) -> None:
    names = [task.name for task in stream.tasks]
    for name in names:
        if not re.fullmatch(r"\w[\w .+-]*", name):
            raise UserError(f"stream.tasks: '{name}': a name is of letters, digits, spaces and _.+-, and files are called by it")
        if names.count(name) > 1:
            raise UserError(f"stream.tasks: two are called '{name}'; results are told apart by name")
    if stream.folder and not Path(stream.folder).expanduser().is_dir():
        raise UserError(f"stream.folder={stream.folder}: there is no such folder")


def _check_ranges(config: Config) -> None:
    for key in NOT_NEGATIVE:
        if not 0 <= value_of(config, key) < float("inf"):
            raise UserError(f"{key}={value_of(config, key)}: must be a finite number, 0 or more")
    for key in SHARES:
        if not 0 < value_of(config, key) <= 1:
            raise UserError(f"{key}={value_of(config, key)}: must be above 0 and at most 1")
    for key, most in FRACTIONS.items():
        if not 0 <= value_of(config, key) <= most:
            raise UserError(f"{key}={value_of(config, key)}: must be in 0..{most}")


def options_of(name: str) -> str:
    """The section of `method` that holds the options of a method or strategy."""
    return "lora" if name == "lora_per_task" else name


def own_options(method: dict[str, Any]) -> dict[str, Any]:
    """A configuration's `method` without the other methods' options."""
    return {key: value for key, value in method.items() if key in ("name", options_of(method["name"]))}


def protects(config: Config) -> bool:
    """Whether a stream is learnt by experts that hold on to an anchor."""
    return config.method.name == "igsp" and config.method.igsp.protect > 0


def _warn_of_unused(method: MethodConfig) -> None:
    """Options of a method that is not chosen do nothing, and whoever changed one should know."""
    for section in dataclasses.fields(method):
        options = getattr(method, section.name)
        if section.name == options_of(method.name) or not dataclasses.is_dataclass(options):
            continue
        for option in dataclasses.fields(options):
            value = getattr(options, option.name)
            if value != option.default:
                warn(f"method.{section.name}.{option.name}={value} is not used: method.name is {method.name}")
