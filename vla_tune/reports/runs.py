"""What a RUN folder holds, read for the report: finished stages, and the log of a training that still runs."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_tune.artifacts.folder import Artifact, read_artifact
from vla_tune.errors import UserError

STAGES = ("anchor", "train", "eval-vqa", "eval-rollout")
EVALUATIONS = ("eval-vqa", "eval-rollout")
DIAGNOSTICS = ("cosine", "projected", "energy_shed", "drift")
"""What a projecting method logs a layer; a frozen layer's entry is null."""

Row = dict[str, Any]


@dataclass
class Run:
    """One RUN folder.

    artifacts: the finished stages, by name.
    config: of the training, else of what there is.
    metrics: the rows of `metrics.jsonl`, of the finished training or of the one that is `running`.
    vqa, rollout: the evaluations' `report.json`; predictions and episodes are their tables' rows. A stream of tasks has none of these.
    stream: what the evaluations tell of a stream of tasks (`vla_tune.evaluation.matrix.figures`).
    label: what tells this run from the others of the report.
    """

    path: Path
    artifacts: dict[str, Artifact]
    config: Row
    metrics: list[Row] = field(default_factory=list)
    running: bool = False
    vqa: Row | None = None
    predictions: list[Row] = field(default_factory=list)
    rollout: Row | None = None
    episodes: list[Row] = field(default_factory=list)
    videos: list[Path] = field(default_factory=list)
    stream: Row | None = None
    label: str = ""

    @property
    def method(self) -> str:
        """The method that trained what is scored; a policy from elsewhere goes by its folder."""
        path = self.config.get("train", {}).get("path")
        trained_here = self.running or "train" in self.artifacts
        return _method_of(Path(path)) if path and not trained_here else str(self.config["method"]["name"])

    @property
    def seed(self) -> int | None:
        seed = self.config.get("seed")
        return None if seed is None else int(seed)

    @property
    def of_stream(self) -> bool:
        """Whether it learns one task after another; it may not be evaluated yet."""
        return self.stream is not None or bool((self.config.get("stream") or {}).get("tasks"))

    @property
    def expected(self) -> list[str]:
        """The stages that such a run is made of."""
        if not self.of_stream:
            return list(STAGES)
        robot = any(task.get("tasks") for task in (self.config.get("stream") or {}).get("tasks", []))
        return ["train", "eval-vqa", *(["eval-rollout"] if robot else [])]

    @property
    def tasks(self) -> list[Row]:
        """What was recorded of each task of an evaluated stream when it had been learnt."""
        records: list[Row] = ((self.stream or {}).get("parameters") or {}).get("records", [])
        return records

    @property
    def steps(self) -> int | None:
        """Training steps done so far."""
        return int(self.metrics[-1]["step"]) if self.metrics else None

    @property
    def outdated(self) -> list[str]:
        """Stages made from another artifact than the one that lies in the run now."""
        now = {stage: artifact.digest for stage, artifact in self.artifacts.items()}
        return [
            stage
            for stage, artifact in self.artifacts.items()
            if any(
                one["digest"] != now.get(one["stage"], one["digest"])
                for one in artifact.manifest["inputs"]
                if Path(one["path"]).resolve() == (self.path / one["stage"]).resolve()
            )
        ]


def read_runs(folders: list[Path]) -> list[Run]:
    """Every folder as a `Run`, labelled by method and seed, or by folder where these do not tell two runs apart."""
    runs = [read_run(folder) for folder in folders]
    for run in runs:
        run.label = run.method if run.seed is None else f"{run.method}, seed {run.seed}"
    labels = [run.label for run in runs]
    for run in runs:
        if labels.count(run.label) > 1:
            run.label = f"{run.label} ({run.path})"
    return runs


def read_run(folder: Path) -> Run:
    """What one RUN folder holds by now.

    Raises:
        UserError: no stage of it has begun, or an artifact is damaged.

    """
    found = [stage for stage in STAGES if (folder / stage / "artifact.json").is_file()]
    partial = folder / "train.partial" / "metrics.jsonl"
    running = "train" not in found and partial.is_file()
    if not found and not running:
        commands = ", ".join(f"`vla-tune {stage} PIPELINE --out {folder}`" for stage in STAGES)
        raise UserError(f"{folder}: there is nothing to report on yet; make a stage with one of {commands}")
    artifacts = {stage: read_artifact(folder / stage, stage, f"vla-tune {stage} PIPELINE --out {folder} --overwrite") for stage in found}
    configs = [artifacts[stage].config for stage in ("train", "eval-vqa", "eval-rollout", "anchor") if stage in found]
    run = Run(folder, artifacts, read_json(partial.with_name("run.json")) if running else configs[0], running=running)
    run.metrics = read_metrics(partial if running else folder / "train" / "metrics.jsonl")
    reports = {stage: read_json(folder / stage / "report.json") for stage in found if stage in EVALUATIONS}
    run.stream = read_stream(reports)
    run.videos = sorted((folder / "eval-rollout" / "videos").glob("*.mp4")) if "eval-rollout" in found else []
    if run.stream is not None:
        return run
    if "eval-vqa" in found:
        run.vqa = reports["eval-vqa"]
        run.predictions = read_table(folder / "eval-vqa" / "predictions.parquet")
    if "eval-rollout" in found:
        run.rollout = reports["eval-rollout"]
        if run.rollout["success"] is not None:  # else there was no world, and its rows are of demonstrations
            run.episodes = read_table(folder / "eval-rollout" / "episodes.parquet")
    return run


def read_stream(reports: dict[str, Row]) -> Row | None:
    """What evaluations tell of a stream: a robot's tasks by `eval-rollout`, the base ability always by `eval-vqa`."""
    asked, acted = (reports.get(stage, {}).get("stream") for stage in EVALUATIONS)
    row: Row | None = acted if acted and "matrix" in acted else asked or acted
    kept = (asked or {}).get("reference")
    return row if row is None or kept is None else {**row, "reference": kept}


def read_metrics(file: Path) -> list[Row]:
    """The rows of a `metrics.jsonl`; the last line of a log that is being written may be cut and is left out."""
    if not file.is_file():
        return []
    lines = file.read_text().splitlines()
    rows: list[Row] = []
    for number, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number < len(lines) - 1:
                raise UserError(f"{file}, line {number + 1}: not readable as JSON") from None
    return rows


def read_json(file: Path) -> Row:
    """A JSON object of an artifact that was verified."""
    value: Row = json.loads(file.read_text())
    return value


def read_table(file: Path) -> list[Row]:
    """The rows of a parquet file."""
    import pyarrow.parquet

    rows: list[Row] = pyarrow.parquet.read_table(file).to_pylist()
    return rows


def layer_series(metrics: list[Row]) -> dict[str, Any] | None:
    """The diagnostics over the steps that logged them, `{"steps": [...], name: [layer][step]}`; None without any.

    What a method does not measure (a cosine, where nothing is compared) is null throughout.
    """
    rows = [row for row in metrics if row.get("energy_shed") and isinstance(row["energy_shed"], list)]
    if not rows:
        return None
    series: dict[str, Any] = {"steps": [row["step"] for row in rows]}
    unmeasured = [None] * len(rows[0]["energy_shed"])
    for name in DIAGNOSTICS:
        series[name] = [list(layer) for layer in zip(*(row.get(name, unmeasured) for row in rows), strict=True)]
    return series


def mean_energy_shed(metrics: list[Row]) -> float | None:
    """The share of the task gradient's energy that projection removed, over logged steps and layers."""
    return mean(logged(metrics, "energy_shed"))


def logged(metrics: list[Row], name: str) -> list[float | None]:
    """All values of a diagnostic: a step has one a layer, or one in all."""
    values = [row.get(name) for row in metrics]
    return [value for step in values for value in (step if isinstance(step, list) else [step])]


def median_step_s(metrics: list[Row]) -> float | None:
    """The median training step in seconds, without data loading."""
    times = [row["step_s"] for row in metrics if row.get("step_s") is not None]
    return statistics.median(times) if times else None


def mean(values: list[float | None]) -> float | None:
    """The mean of what is not null."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _method_of(path: Path) -> str:
    """The method in the train artifact at `path`, else the name of the policy folder."""
    file = path / "artifact.json"
    if not file.is_file():
        return path.name
    return str(json.loads(file.read_text()).get("config", {}).get("method", {}).get("name", path.name))
