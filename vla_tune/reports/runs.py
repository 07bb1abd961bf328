"""What a RUN folder holds, read for the report: finished stages, and the log of a training that still runs."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from vla_tune.artifacts.folder import Artifact, read_artifact
from vla_tune.artifacts.record import read_record
from vla_tune.artifacts.typed import checked, parse_json, read_json, readable
from vla_tune.errors import UserError, one_line
from vla_tune.reports import forms

STAGES = ("anchor", "train", "eval-vqa", "eval-rollout")
EVALUATIONS = ("eval-vqa", "eval-rollout")
FORMS = {"eval-vqa": forms.VqaReport, "eval-rollout": forms.RolloutReport}
"""Of their `report.json`."""
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
    configs = {stage: _config_of(artifacts[stage]) for stage in ("train", "eval-vqa", "eval-rollout", "anchor") if stage in found}
    config = read_json(partial.with_name("run.json"), forms.RunConfig) if running else next(iter(configs.values()))
    run = Run(folder, artifacts, config, running=running)
    run.metrics = read_metrics(partial if running else folder / "train" / "metrics.jsonl")
    reports = {stage: read_json(artifacts[stage].file("report.json"), FORMS[stage]) for stage in found if stage in EVALUATIONS}
    run.stream = read_stream(reports)
    if "eval-rollout" in found:
        listed = sorted(artifacts["eval-rollout"].manifest["files"])
        run.videos = [folder / "eval-rollout" / name for name in listed if PurePosixPath(name).match("videos/*.mp4")]
    if run.stream is not None:
        return run
    if "eval-vqa" in found:
        run.vqa = reports["eval-vqa"]
        run.predictions = read_table(artifacts["eval-vqa"].file("predictions.parquet"), forms.Prediction)
    if "eval-rollout" in found:
        run.rollout = reports["eval-rollout"]
        if run.rollout.get("success") is not None:  # else there was no world, and its rows are of demonstrations
            run.episodes = read_table(artifacts["eval-rollout"].file("episodes.parquet"), forms.Episode)
    return run


def _config_of(artifact: Artifact) -> Row:
    """The configuration of a stage, and its metrics where a report goes by them, looked at."""
    with readable(str(artifact.path / "artifact.json")):
        checked(forms.RunConfig, artifact.config)
        if artifact.manifest["stage"] == "train":
            checked(forms.TrainMetrics, artifact.metrics)
    return artifact.config


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
    lines = _lines(file)
    rows: list[Row] = []
    for number, line in enumerate(lines):
        try:
            rows.append(parse_json(line))
        except ValueError:
            if number < len(lines) - 1:
                raise UserError(f"{file}, line {number + 1}: not readable as JSON") from None
    with readable(str(file)):
        checked(list[forms.LogRow], rows)
        _check_layers(rows)
    return rows


def _lines(file: Path) -> list[str]:
    try:
        return file.read_bytes().decode().splitlines()
    except ValueError as error:
        raise UserError(f"{file}: not readable as UTF-8 ({one_line(error)})") from None


def _check_layers(rows: list[Row]) -> None:
    """Diagnostics by layer are of equally many layers, all of them and in every row."""
    layered = [row[name] for row in rows if isinstance(row.get("energy_shed"), list) for name in DIAGNOSTICS if name in row]
    if len({len(values) if isinstance(values, list) else None for values in layered}) > 1:
        raise ValueError(f"{', '.join(DIAGNOSTICS)}: not of equally many layers everywhere")


def read_table(file: Path, form: Any = dict[str, Any]) -> list[Row]:
    """The rows of a parquet file.

    Raises:
        UserError: it is damaged, or a row is not of this form.

    """
    import pyarrow.parquet

    with readable(str(file)):
        rows: list[Row] = pyarrow.parquet.read_table(file).to_pylist()
        return checked(list[form], rows)


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


def train_metrics(path: Path) -> Row:
    """The metrics of the train artifact at `path`, whose files are not looked at; none where it is gone.

    Raises:
        UserError: its `artifact.json` is damaged.

    """
    file = path / "artifact.json"
    if not file.is_file():
        return {}
    with readable(str(file)):
        return checked(forms.TrainMetrics, read_record(file)["metrics"])


def _method_of(path: Path) -> str:
    """The method in the train artifact at `path`, else the name of the policy folder."""
    file = path / "artifact.json"
    if not file.is_file():
        return path.name
    try:
        config: Row = checked(forms.RunConfig, read_record(file)["config"])
    except (OSError, ValueError):
        return path.name
    return str(config["method"]["name"])
