"""Run folders in the format of the stages, with invented numbers."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vla_tune.artifacts.folder import Artifact, Draft, write_json
from vla_tune.config import load_config

TYPES = ("count", "count_attribute", "colour", "shape", "existence", "relation")
TASKS = ("reach-v3", "door-open-v3")
PAYLOAD = "<script>alert('x')</script> & $a_b$"
PROBE = {"value": 0.625, "low": 0.31, "high": 0.86}
STREAM = ("reach", "drawer", "button")
MP4 = b"\x00\x00\x00\x18ftypmp42invented"


def config(method: str, seed: int) -> dict[str, Any]:
    return load_config("demo", [f"method.name={method}", f"seed={seed}", "vqa.questions=60"]).to_dict()


def stream_config(seed: int = 0, *, robot: bool = False) -> dict[str, Any]:
    tasks = [{"name": name, "manifest": None, "tasks": [f"{name}-v3"] if robot else [], "instructions": []} for name in STREAM]
    made = config("full", seed)
    return {**made, "method": {**made["method"], "name": "igsp"}, "stream": {**made["stream"], "tasks": tasks}}


def publish(
    run: Path,
    stage: str,
    files: dict[str, Any],
    method: str,
    seed: int,
    inputs: list[dict[str, str]] | None = None,
    settings: dict[str, Any] | None = None,
) -> Artifact:
    with Draft(run / stage, stage) as draft:
        for name, content in files.items():
            file = draft.path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                file.write_bytes(content)
            elif name.endswith(".parquet"):
                pq.write_table(pa.Table.from_pylist(content), file)
            elif name.endswith(".jsonl"):
                file.write_text("".join(json.dumps(row) + "\n" for row in content))
            else:
                write_json(file, content)
        return draft.publish(config=settings or config(method, seed), inputs=inputs or [], metrics={})


def metrics(method: str, steps: int = 400, layers: int = 4) -> list[dict[str, Any]]:
    rng = random.Random(0)  # noqa: S311
    rows = []
    for step in range(10, steps + 1, 10):
        row: dict[str, Any] = {
            "step": step,
            "loss": 1.2 * math.exp(-step / 200) + 0.1 * rng.random() + 0.1,
            "lr": 1e-3 * (1 - step / steps),
        }
        row |= {"grad_norm": 1 + rng.random(), "step_s": 0.2 + 0.01 * rng.random(), "data_s": 0.01}
        if method == "subspace":
            row["energy_shed"] = [*(rng.uniform(0.8, 0.9) for _ in range(layers - 1)), None]
        if method == "aegis":
            row["cosine"] = [*(rng.uniform(-0.1, 0.1) for _ in range(layers - 1)), None]
            row["projected"] = [*(int(rng.random() < 0.5) for _ in range(layers - 1)), None]
            row["energy_shed"] = [*(abs(rng.gauss(0, 0.002)) for _ in range(layers - 1)), None]
            row["drift"] = [10 ** (-layer) * (0.1 + step / steps) for layer in range(layers)]
        rows.append(row)
    return rows


def predictions(kept: float) -> list[dict[str, Any]]:
    rng = random.Random(1)  # noqa: S311
    rows = []
    for number in range(60):
        kind = TYPES[number % len(TYPES)]
        base, after = float(rng.random() < 0.9), float(rng.random() < kept)
        row: dict[str, Any] = {"question_id": f"test-{number}", "image_id": f"image-{number // 3}", "type": kind, "answers": ["red"]}
        row |= {"question": PAYLOAD if number < len(TYPES) else f"what color is object {number}?", "base_score": base, "score": after}
        row |= {"base_prediction": "red" if base else "blue", "prediction": "red" if after else "green"}
        rows.append(row)
    return rows


def rates(rows: list[dict[str, Any]]) -> dict[str, Any]:
    base, after = (sum(row[key] for row in rows) / len(rows) for key in ("base_score", "score"))
    figures: dict[str, Any] = {"n": len(rows)}
    for name, value in (("base_accuracy", base), ("accuracy", after), ("retention", after / base)):
        figures[name] = {"value": value, "low": max(value - 0.06, 0), "high": value + 0.05}
    return figures


def add_train(run: Path, method: str = "aegis", seed: int = 0) -> Artifact:
    anchor = publish(run, "anchor", {"anchor.safetensors": b"statistics"}, method, seed)
    files = {"metrics.jsonl": metrics(method), "policy/config.json": {}}
    return publish(run, "train", files, method, seed, [anchor.as_input()])


def add_vqa(run: Path, train: Artifact, method: str = "aegis", seed: int = 0, kept: float = 0.6) -> Artifact:
    rows = predictions(kept)
    by_type = {kind: {**rates([row for row in rows if row["type"] == kind]), "blind": 0.3} for kind in TYPES}
    drift = [0.2, 0.05, 0.01, 0.004]
    report = {**rates(rows), "by_type": by_type, "lost": 20, "gained": 3, "mcnemar_p": 0.0004, "blind": 0.3}
    report["weights"] = [{"group": "layers.0", "parameters": 1000, "tensors": 9, "moved": 9, "relative": 0.01, "largest": 0.2}]
    report["ranked"] = {"n": 30, "base_accuracy": {"value": 0.9}, "accuracy": {"value": 0.8}, "best": 1.0}
    report |= {"drift": sum(drift) / len(drift), "drift_by_layer": drift}
    return publish(run, "eval-vqa", {"report.json": report, "predictions.parquet": rows}, method, seed, [train.as_input()])


def add_rollout(run: Path, train: Artifact, method: str = "aegis", seed: int = 0) -> Artifact:
    episodes = [
        {"task": task, "instruction": PAYLOAD, "seed": 10_000 + number, "success": number % 4 > 0, "steps": 70, "return": 1.0}
        for number in range(8)
        for task in TASKS
    ]
    tasks = {task: {"value": 0.75, "low": 0.41, "high": 0.93, "episodes": 8, "instruction": PAYLOAD} for task in TASKS}
    report = {"success": {"value": 0.75, "low": 0.5, "high": 0.9}, "episodes": 16, "by_task": tasks, "n_action_steps": 8, "step_limit": 150}
    report["language_probe"] = {given: {**PROBE, "episodes": 8} for given in ("right", "swapped", "empty")} | {"followed": None}
    files = {"report.json": report, "episodes.parquet": episodes, "videos/reach-v3-seed10000-success.mp4": MP4}
    return publish(run, "eval-rollout", files, method, seed, [train.as_input()])


def whole_run(run: Path, method: str = "aegis", seed: int = 0, kept: float = 0.6) -> Path:
    train = add_train(run, method, seed)
    add_vqa(run, train, method, seed, kept)
    add_rollout(run, train, method, seed)
    return run


def task_record(task: int) -> dict[str, Any]:
    """What iGSP writes down of a task: its own expert and all earlier ones in each layer but one."""
    layers = [f"model.vlm.vision_model.encoder.layers.{n}.{kind}" for n in range(2) for kind in ("mlp.fc1", "self_attn.q_proj")]
    experts = ["base", *(f"{own}-0" for own in range(task + 1))]
    shares = {layer: dict.fromkeys(experts, 1 / len(experts)) for layer in [*layers[task > 0 :], "model.state_proj"]}
    trained = {"first": 2000, "last": 1000, "mean": 1234.5}
    found = {"agreement": [[20, 0.7], [30, 0.95]] if task else [], "ended": 30, "new": 5 - (task > 0), "old": 4 * task, "candidates": 10}
    added = {"experts": 900 * (task + 1), "routers": 100 * (task + 1)}
    return {"name": STREAM[task], "trainable": trained, "added": added, "router": 64, "fresh": 0, **found, "shares": shares}


def stream_report(*, tasks: bool = True, reference: bool = True, start: bool = True) -> dict[str, Any]:
    count = len(STREAM)
    records = [task_record(task) for task in range(count)]
    grown: dict[str, Any] = {"trainable": [one["trainable"] for one in records], "added": [1000, 2000, 3000], "final_added": 3000}
    grown |= {"mean_trainable": 1234.5, "mean_trainable_first": 2000.0, "mean_trainable_last": 1000.0, "task_router": 64, "fresh": 0}
    report: dict[str, Any] = {"tasks": list(STREAM), "parameters": {**grown, "final_parts": records[-1]["added"], "records": records}}
    if reference:
        kept = {"before": 0.98, "after": 0.95, "retention": 0.969}
        report["reference"] = {name: {"value": value, "low": value - 0.02, "high": value + 0.01} for name, value in kept.items()} | {
            "n": 160
        }
    if not tasks:
        return report
    matrix = [[0.875 if task <= after else (0.125 if start else None) for task in range(count)] for after in range(count)]
    figures = {"transfer": 0.125 if start else None, "average": 0.5 if start else None, "last": 0.875, "backward_transfer": -0.0625}
    report |= {"matrix": matrix, "start": [0.0625] * count if start else None, "n": [40] * count}
    report["figures"] = {
        name: {"value": value, "low": None if value is None else value - 0.03, "high": None if value is None else value + 0.03}
        for name, value in {**figures, "forgetting": 0.0625}.items()
    }
    report["last_by_batch"] = {"by_task": [0.9, 0.9, 0.9], "mean": 0.9}
    report["last_by_given"] = {"by_task": [0.9125] * count, "mean": 0.9125}
    report["taken_for"] = [[0.96 if own == task else 0.01 for own in range(count)] + [0.02] for task in range(count)]
    return report


def stream_run(run: Path, *, robot: bool = False, stages: tuple[str, ...] = ("eval-vqa", "eval-rollout")) -> Path:
    """A stream of pictures, or of a robot's tasks, by the stages that it has been evaluated by."""
    settings = stream_config(robot=robot)
    rows = [{**row, "task": place * len(STREAM) // 40} for place, row in enumerate(metrics("full"))]
    train = publish(run, "train", {"metrics.jsonl": rows}, "igsp", 0, settings=settings)
    cells = [{"after": "reach", "task": "reach", "sample": 0, "score": 1.0, "taken_for": "reach"}]
    asked: dict[str, Any] = {"stream": stream_report(tasks=not robot)}
    if robot:
        kept = asked["stream"]["reference"]
        asked |= {"base_accuracy": kept["before"], "accuracy": kept["after"], "retention": kept["retention"], "n": kept["n"]}
    reports = {"eval-vqa": asked}
    if robot:
        reports["eval-rollout"] = {"stream": stream_report(reference=False, start=False)}
    for stage, report in reports.items():
        if stage in stages:
            videos = {"videos/reach-v3-seed10000-success.mp4": MP4} if stage == "eval-rollout" else {}
            publish(run, stage, {"report.json": report, "cells.parquet": cells, **videos}, "igsp", 0, [train.as_input()], settings)
    return run


def running_stream(run: Path) -> Path:
    partial = running_run(run, "full") / "train.partial"
    write_json(partial / "run.json", stream_config())
    return run


def running_run(run: Path, method: str = "aegis") -> Path:
    partial = run / "train.partial"
    partial.mkdir(parents=True)
    write_json(partial / "run.json", config(method, 0))
    lines = [json.dumps(row) for row in metrics(method)]
    (partial / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 410, "lo']))
    return run
