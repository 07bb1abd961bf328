"""What every run's configuration has: each field with its default, its bounds and what it means.

A pipeline is a YAML file; every key of it, and every `KEY=VALUE` of the command line, must be a field below. The methods' options are
in `vla_tune.methods.options`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from vla_tune.fields import option, required
from vla_tune.methods.options import MethodConfig
from vla_tune.resources import available

MOST_SEED = 2**32 - 1
"""Larger ones would not fit where they are multiplied with the numbers of tasks and epochs."""


@dataclass
class PolicyConfig:
    """Which policy is trained."""

    path: str | None = option(
        None, help="what `train` starts from, a Hub id or a lerobot policy folder; without it a new action expert is put on base_vlm"
    )
    type: str = option(
        "smolvla",
        help="of the policy that is made where there is no path: smolvla, pi0, pi05, or one that another package has an adapter for",
    )
    base_vlm: str | None = option(
        None,
        help="the VLM whose skill counts, a Hub id, a folder, or `demo` (the VLM that is shipped); default: the starting policy's own",
    )
    settings: dict[str, Any] = option({}, help="fields of lerobot's configuration of that type, such as chunk_size")
    trust: list[str] = option([], help="Python packages whose processor steps the policy at `path` may name; they are imported")


@dataclass
class DataConfig:
    """The demonstrations: either `manifest` (what we generate) or a LeRobotDataset by `repo_id` and, offline, `root`."""

    manifest: str | None = option(None, help="demonstrations that we generate, by a shipped manifest's name or a path")
    repo_id: str | None = option(None, help="a LeRobotDataset")
    root: str | None = option(None, help="the folder that the dataset is read from; default: lerobot's cache, or the Hub")
    rename: dict[str, str] = option(
        {}, help="the dataset's names of pictures or of the state, each with the name that the policy at policy.path knows it by"
    )
    heldout: float = option(
        0.0, at_least=0, at_most=0.5, help="the share of its episodes that training leaves out, to measure the action loss on"
    )
    heldout_frames: int = option(
        1000,
        at_least=1,
        needs=("data.heldout",),
        help="on how many of their frames at most, spread evenly; videos are slow to jump about in",
    )
    cache_mb: int = option(
        4000, at_least=0, help="datasets that need at most this many megabytes once decoded are read into memory before training"
    )
    episodes: list[int] | None = option(None, at_least=0, help="which episodes of the dataset are read, by their numbers; default: all")
    workers: int | None = option(
        None,
        at_least=0,
        help="processes that read batches, 0: the training's own; default: as many as help; batches are the same",
    )
    image_transforms: bool = option(False, help="augment the training pictures by lerobot's image transforms, at its defaults")


@dataclass
class AnchorConfig:
    """What is taken from the VLM before it trains, over VQA questions of a manifest's anchor split."""

    manifest: str | None = option(None, help="the questions; default: vqa.manifest")
    samples: int = option(1000, at_least=1, help="how many questions are read")
    batch_size: int = option(50, at_least=1, help="the most samples that go through the model at once; fewer where memory is short")
    frames: int = option(
        512, at_least=0, help="how many of the demonstrations' frames are read beside them, to tell how far the two overlap; 0: none"
    )
    gradients: int = option(
        512,
        at_least=0,
        help="on how many of the samples the answers' gradients are taken, which tell how sensitive they are to each layer; 0: none",
    )
    energy: float = option(
        0.999,
        above=0,
        at_most=1,
        help="the share of its inputs' energy (and of its outputs' gradients') that the stored directions of each linear layer carry",
    )
    rank: int = option(2048, at_least=1, help="the most directions that are stored of one layer")
    exact_width: int = option(4096, at_least=1, help="wider layers are sketched, with this rank")
    path: str | None = option(None, help="an anchor artifact to use instead; default: RUN/anchor")


@dataclass
class StreamTask:
    """One task of a stream: pictures or questions by their `manifest`, or what a robot does."""

    name: str = required(help="what results call it; letters, digits, spaces and _.+-")
    manifest: str | None = option(None, help="its pictures or questions")
    tasks: list[str] = option([], help="a robot's, by the names that rollout.tasks takes")
    instructions: list[str] = option([], help="whose demonstrations are learnt from; default: those of its tasks")


@dataclass
class StreamConfig:
    """Tasks that are learnt one after another, `train.steps` each; without any, training is of one task."""

    tasks: list[StreamTask] = option([], help="the tasks, in the order in which they are learnt")
    parts: list[str] = option([], help="which parts of the model get experts, of text, vision and, in a policy, expert; empty: all")
    linears: list[str] = option([], help="which linear layers of them, by name; empty: all")
    reference: str | None = option(None, help="a manifest of samples that belong to no task, on which the model should go on as it was")
    router_width: int = option(
        2048,
        at_least=1,
        help="how many random features tasks are told apart by, of what the frozen model sees (and of a picture's patches)",
    )
    router_samples: int = option(5000, at_least=1, help="how many samples of a task, at most, it is learnt to be told by")
    folder: str | None = option(None, help="where manifests' relative paths start")
    merged: bool = option(False, help="whether a stock model of each task alone is also saved, its experts merged into its weights")


@dataclass
class TrainConfig:
    """The optimisation; lerobot's optimizer and schedule presets with these values put in."""

    steps: int = option(1000, at_least=1, help="optimizer steps; in a stream, of each task")
    batch_size: int = option(32, at_least=1, help="samples a step, over all micro-batches")
    accumulate: int = option(1, at_least=1, help="micro-batches that a step's batch is split into, to save memory; must divide batch_size")
    precision: str = option(
        "auto",
        choices=("auto", "float32", "bfloat16"),
        help="what the forward pass computes in, the weights that train stay float32; auto: as lerobot's policy would on that device",
    )
    activation_checkpointing: bool = option(False, help="compute activations again in the backward pass: less memory, more time")
    compile: bool = option(False, help="compile norms and MLPs with torch.compile; minutes before the first step")
    reference: bool = option(False, help="compute lerobot's own update to the bit: its draws of noise and time, its unfused optimizer")
    lr: float = option(1e-4, above=0, help="the highest learning rate")
    warmup_steps: int = option(50, at_least=0, help="steps in which the learning rate rises to lr")
    weight_decay: float | None = option(None, at_least=0, help="of the optimizer; default: lerobot's preset of the policy")
    betas: list[float] | None = option(None, at_least=0, below=1, length=2, help="of Adam; default: lerobot's preset of the policy")
    grad_clip_norm: float | None = option(
        None, at_least=0, help="norm that gradients are clipped to, 0: none; default: lerobot's preset of the policy"
    )
    log_every: int = option(10, at_least=1, help="steps from one row of metrics.jsonl to the next")
    trackers: list[str] = option([], choices=("tensorboard", "wandb", "trackio"), help="where figures go beside metrics.jsonl")
    eval_every: int = option(0, at_least=0, help="steps from one measurement beside the training loss to the next; 0: never")
    eval_questions: int = option(
        0, at_least=0, needs=("train.eval_every",), help="VQA questions that are asked at each of these measurements; 0: none"
    )
    checkpoint_every: int = option(200, at_least=1, help="steps from one checkpoint to the next")
    keep_checkpoints: int = option(2, at_least=1, help="how many checkpoints are kept, the newest ones")
    keep_best: bool = option(
        False,
        needs=("data.heldout", "train.eval_every"),
        help="also keep the checkpoint with the lowest loss on held-out episodes",
    )
    path: str | None = option(None, help="what the evaluations score, a train artifact or any lerobot policy folder; default: RUN/train")


@dataclass
class VqaConfig:
    """The questions of the manifest's test split that the base and the tuned VLM are asked."""

    manifest: str = option("shapes", help="a shipped one by its name, yours by its path, or a folder that holds qa.jsonl and pictures")
    questions: int = option(3000, at_least=1, help="how many are asked, the first ones")
    ranked: int = option(
        300, at_least=0, help="how many of them, the first ones, are also answered by the likelihood of candidate answers; 0: none"
    )
    batch_size: int = option(100, at_least=1, help="questions that are answered together")
    max_new_tokens: int = option(6, at_least=1, help="the longest answer")
    bootstrap: int = option(2000, at_least=1, help="resamplings over images that the intervals are taken from")


@dataclass
class RolloutConfig:
    """Closed-loop episodes."""

    tasks: list[str] = option(
        [],
        help="Meta-World's, ours in its scene or LIBERO's (libero_object/3), or groups of them (easy, touch, libero_object); without any "
        "the policy is scored on held-out demonstrations instead (data.heldout)",
    )
    episodes: int = option(60, at_least=1, help="in all, dealt evenly over the tasks; in a stream as many of each task")
    first_seed: int = option(
        10_000,
        at_least=0,
        at_most=MOST_SEED // 2,
        help="the seed of each task's first episode, the others count on; for LIBERO the number of an initial state",
    )
    n_action_steps: int = option(8, at_least=1, help="actions of a chunk that are executed before the next is predicted")
    step_limit: int | None = option(None, at_least=1, help="the longest episode; default: the benchmark's own")
    image_size: int | None = option(None, at_least=1, help="of the pictures; default: what the policy was trained on")
    parallel: int = option(10, at_least=1, help="episodes whose policy calls share a batch")
    processes: bool = option(False, help="whether each of these runs in a process of its own")
    videos: int = option(4, at_least=0, help="how many episodes are kept as a video, the first of each task first")
    probe: int = option(
        0,
        at_least=0,
        help="how many episodes, the first of each task first, are also run with a wrong and with an empty instruction",
    )
    compat: str | None = option(
        None,
        choices=("lerobot-eval",),
        help="run the episodes as that program does, for the same outcomes on the same seeds",
    )


@dataclass
class Config:
    """A pipeline: everything that the stages read."""

    name: str = required(help="what the run is called; default: the file's name")
    seed: int = option(0, at_least=0, at_most=MOST_SEED, help="of everything that is drawn in training")
    device: str = option("auto", help="where the model computes: auto (the GPU where there is one), cpu, cuda, cuda:1")
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
