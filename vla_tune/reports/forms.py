"""The form of what a report reads of a run: what is of another form is told by file and key, and not shown."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

Value = float | None
ByLayer = float | list[Value] | None
"""Of a diagnostic a step has one value a layer, or one in all."""


class Figure(TypedDict):
    """A figure with its 95 % interval; null where it could not be measured."""

    value: Value
    low: Value
    high: Value


class Point(TypedDict):
    """A figure whose interval is not shown."""

    value: float


class Named(TypedDict):
    """What goes by a name."""

    name: str


class Tasks(TypedDict, total=False):
    """A stream's section of the configuration."""

    tasks: list[Named]


class RunConfig(TypedDict):
    """What a report reads of a run's configuration."""

    name: str
    method: Named
    seed: NotRequired[int | None]
    stream: NotRequired[Tasks | None]
    train: NotRequired[dict[str, Any]]


class LogRow(TypedDict):
    """A row of `metrics.jsonl`."""

    step: int
    loss: NotRequired[Value]
    lr: NotRequired[Value]
    grad_norm: NotRequired[Value]
    step_s: NotRequired[Value]
    data_s: NotRequired[Value]
    heldout_loss: NotRequired[Value]
    vqa_accuracy: NotRequired[Value]
    drift_vqa: NotRequired[Value]
    cosine: NotRequired[ByLayer]
    projected: NotRequired[ByLayer]
    energy_shed: NotRequired[ByLayer]
    drift: NotRequired[ByLayer]


class TrainMetrics(TypedDict, total=False):
    """What a report reads of a training's metrics."""

    heldout_loss: Value
    seconds: Value


class Prediction(TypedDict):
    """A row of `predictions.parquet`."""

    image_id: str | int
    type: str
    question: str
    answers: str | list[str]
    base_prediction: str
    prediction: str
    base_score: float
    score: float


class Episode(TypedDict):
    """A row of `episodes.parquet`."""

    task: str
    seed: int
    success: bool


class CellRow(TypedDict):
    """A row of `cells.parquet`."""

    after: str
    task: str
    sample: int
    score: float
    image: NotRequired[str | None]


class TypeRow(TypedDict, total=False):
    """A type of questions."""

    n: int
    base_accuracy: Figure | None
    accuracy: Figure | None
    retention: Figure | None
    blind: Value


class Group(TypedDict):
    """A group of the VLM's weights."""

    group: str
    parameters: int
    tensors: int
    moved: int
    relative: float
    largest: float


class Ranked(TypedDict):
    """VQA by likelihood of candidate answers."""

    n: int
    base_accuracy: Point
    accuracy: Point
    best: float


class Trainable(TypedDict):
    """Parameters that a task trained."""

    first: int
    last: int
    mean: float


class TaskRecord(TypedDict):
    """What was recorded of a task when it had been learnt."""

    name: str
    shares: NotRequired[dict[str, dict[str, float]] | None]
    agreement: NotRequired[list[list[Value]] | None]
    ended: NotRequired[int | None]
    new: NotRequired[int | None]
    old: NotRequired[int | None]
    candidates: NotRequired[int | None]


class Grown(TypedDict):
    """The parameters of a stream."""

    trainable: list[Trainable]
    added: list[int]
    final_added: int
    final_parts: dict[str, int]
    mean_trainable: float
    mean_trainable_first: float
    mean_trainable_last: float
    task_router: NotRequired[int]
    fresh: NotRequired[int]
    records: list[TaskRecord]


class Kept(TypedDict):
    """What belongs to none of a stream's tasks."""

    before: Figure
    after: Figure
    retention: Figure | None
    n: int


class OtherWay(TypedDict):
    """Last, where samples are told apart by task in another way."""

    mean: float


class Stream(TypedDict):
    """What an evaluation tells of a stream of tasks."""

    tasks: list[str]
    reference: NotRequired[Kept]
    matrix: NotRequired[list[list[Value]]]
    start: NotRequired[list[Value] | None]
    figures: NotRequired[dict[str, Figure]]
    last_by_batch: NotRequired[OtherWay]
    last_by_given: NotRequired[OtherWay]
    taken_for: NotRequired[list[list[float]]]
    parameters: NotRequired[Grown | None]


class VqaReport(TypedDict, total=False):
    """`eval-vqa/report.json`."""

    n: int
    base_accuracy: Figure | None
    accuracy: Figure | None
    retention: Figure | None
    by_type: dict[str, TypeRow]
    mcnemar_p: Value
    drift: Value
    drift_by_layer: list[Value] | None
    weights: list[Group]
    ranked: Ranked | None
    stream: Stream


class Rate(Figure):
    """Closed-loop success, of how many episodes."""

    episodes: int


class Joint(Figure):
    """The action error of a joint, and the demonstrations' mean action's."""

    constant: float


class Offline(TypedDict):
    """A policy on held-out demonstrations."""

    action_error: Figure
    constant: Point
    by_joint: dict[str, Joint]
    action_moved: dict[str, Figure]


class RolloutReport(TypedDict, total=False):
    """`eval-rollout/report.json`."""

    success: Figure | None
    episodes: int
    by_task: dict[str, Rate]
    language_probe: dict[str, Rate | None] | None
    offline: Offline | None
    stream: Stream


class StepTime(TypedDict):
    """A method's step in `benchmark/steps.json`: in seconds, and as a multiple of plain fine-tuning's."""

    step_s: float
    step_ratio: float
