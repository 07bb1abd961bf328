"""What is killed: a stage of a small run, the changes at which it was ugly once, and what must be the same in the end."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import program
from small_runs import demo_overrides, write_dataset, write_manifests

STEPS = 20
"""Of four samples each: with an epoch of 30 frames, a run crosses two borders."""
EVERY = 3
STREAM_STEPS = 8
"""Of eight pictures each: with an epoch of 24 to 27 pictures, a task crosses two borders."""


@dataclass(frozen=True)
class Target:
    """A stage to kill.

    needs: the stages of the base run that it reads. ugly: parts of the names of changes (`moments.Moment`).
    """

    stage: str
    overrides: tuple[str, ...]
    pipeline: str = "demo"
    needs: tuple[str, ...] = ()
    ugly: tuple[str, ...] = ()

    def arguments(self, base: Path, run: Path) -> list[str]:
        """Its command line on a run that has what it needs."""
        if self.stage == "report":
            return ["report", str(run), "--out", str(run / "report")]
        common = demo_overrides(base / "dataset") if self.pipeline == "demo" else []
        return [self.stage, self.pipeline, *common, *(one.replace("BASE", str(base)) for one in self.overrides), "--out", str(run)]


LONG = (f"train.steps={STEPS}", f"train.checkpoint_every={EVERY}", "data.heldout=0.34", "train.eval_every=5")
SAVED = ("checkpoints/", "policy/", "vlm/", "artifact.json", "rename")
ASKED = ("vqa.questions=40", "vqa.ranked=4", "vqa.bootstrap=50")
DRAWN = (
    *(f"train.steps={STREAM_STEPS}", "train.checkpoint_every=1", "train.batch_size=8", "train.log_every=1", "train.warmup_steps=1"),
    *("method.igsp.check_every=2", "method.igsp.least=2", "vqa.questions=16", "vqa.bootstrap=50"),
    *("stream.router_width=64", "stream.router_samples=48", "stream.reference=drawn-signs", "stream.folder=BASE/manifests"),
    "stream.tasks=[{name: shapes, manifest: invented-shapes}, {name: again, manifest: invented-shapes-again}]",
)
ONE = "{name: drawer, tasks: [drawer-open-v3], instructions: [Open a drawer]}"
OTHER = "{name: button, tasks: [button-press-v3], instructions: [Press a button]}"
ROBOTS = (
    *("data.manifest=null", "data.repo_id=local/small", "data.cache_mb=0", "data.workers=2", "method.name=igsp"),
    *("policy.settings.chunk_size=4", "policy.settings.n_action_steps=2", "rollout.n_action_steps=2", "vqa.questions=8"),
    *(f"train.steps={STREAM_STEPS}", "train.checkpoint_every=2", "train.batch_size=8", "train.log_every=1", "train.warmup_steps=1"),
    *("method.igsp.check_every=2", "method.igsp.least=2", "stream.router_width=32", "stream.router_samples=24"),
    f"stream.tasks=[{ONE}, {OTHER}]",
)
CLOSED_LOOP = (
    *("rollout.tasks=[touch-red,touch-green]", "rollout.episodes=6", "rollout.probe=2", "rollout.videos=3", "rollout.step_limit=6"),
    *("rollout.parallel=1", "rollout.n_action_steps=2"),  # in other batches than before, returns have other last digits
)
TARGETS = {
    "train": Target("train", LONG, ugly=SAVED),
    "workers": Target("train", (*LONG, "data.cache_mb=0", "data.workers=2"), ugly=SAVED),
    "extend": Target("train", (*LONG, f"train.steps={STEPS + EVERY}"), needs=("train",), ugly=(*SAVED, "partial.new", "replaced")),
    "robot": Target("train", (*ROBOTS, "data.root=BASE/dataset"), "stream-metaworld", ugly=("after", "checkpoints.old", "vlm/", "policy/")),
    "stream": Target(
        "train", DRAWN, "stream-drawn", ugly=("checkpoints.old", "rename train.partial/checkpoints ", "after", "clip/", "artifact.json")
    ),
    "anchor": Target("anchor", (), ugly=("artifact.json", "rename")),
    "vqa": Target("eval-vqa", ASKED, needs=("anchor", "train"), ugly=("artifact.json", "rename")),
    "rollout": Target(
        "eval-rollout", CLOSED_LOOP, needs=("train",), ugly=("artifact.json", "episodes.jsonl", "basis.json", "videos", "rename")
    ),
    "scores": Target("eval-vqa", DRAWN, "stream-drawn", needs=("stream",), ugly=("artifact.json", "scored", "rename")),
    "report": Target("report", (), needs=("anchor", "train"), ugly=("artifact.json", "rename")),
}


def make_base(base: Path, wanted: set[str]) -> None:
    """What targets start from: data, and the stages that these need, made by the program itself."""
    program.apart(lambda: write_dataset(base / "dataset"))
    write_manifests(base / "manifests", train=3)
    for name in sorted({need for one in wanted for need in TARGETS[one].needs}):
        made = program.run(TARGETS[name].arguments(base, base / name), base)
        assert made.code == 0, made.err


def prepare(target: Target, base: Path, run: Path) -> Path:
    """A run's folder with the stages that a target needs in it."""
    run.mkdir(parents=True)
    for name in target.needs:
        shutil.copytree(base / name / TARGETS[name].stage, run / TARGETS[name].stage)
    return run


def contents(stage: Path) -> dict[str, str]:
    """The digest of every file that must be the same; without times, and without the run's own path."""
    last = max((int(one.name) for one in (stage / "checkpoints").glob("*")), default=0)
    found = {}
    for file in sorted(one for one in stage.rglob("*") if one.is_file()):
        name = file.relative_to(stage).as_posix()
        if name == "artifact.json" or (name.startswith("checkpoints/") and not name.startswith(f"checkpoints/{last}/")):
            continue
        content = file.read_bytes().replace(str(stage.parent).encode(), b"RUN")
        if name == "metrics.jsonl":
            rows = [json.loads(line) for line in content.splitlines()]
            content = json.dumps([{key: value for key, value in row.items() if not key.endswith("_s")} for row in rows]).encode()
        found[name] = "" if stage.name == "report" else hashlib.sha256(content).hexdigest()  # a report has times and names in it
    return found | {f"{one.relative_to(stage).as_posix()}/": "" for one in stage.rglob("*") if one.is_dir() and not any(one.iterdir())}
