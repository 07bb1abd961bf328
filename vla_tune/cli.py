"""The command line. It parses and reports; a stage and its heavy imports are loaded when the stage runs."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vla_tune.errors import UserError
from vla_tune.programs import reported

if TYPE_CHECKING:
    from vla_tune.artifacts.folder import Artifact

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Fine-tune vision-language-action models without destroying the vision-language model inside them.",
)

Pipeline = Annotated[
    str, typer.Argument(metavar="PIPELINE", help="A shipped pipeline's name, or the path of a YAML file.", show_default=False)
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE ...]", help="Dotted keys of the schema.", show_default=False)]
Out = Annotated[Path | None, typer.Option("--out", metavar="RUN", help="The run's folder; default: runs/<pipeline>.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a finished stage.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the stage's metrics as the last line of stdout.")]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Four stages joined by artifact folders: anchor, train, eval-vqa, eval-rollout."""
    if version:
        typer.echo(f"vla-tune {importlib.metadata.version('vla-tune')}")
        raise typer.Exit


@app.command()
def anchor(pipeline: Pipeline, overrides: Overrides = None, out: Out = None, overwrite: Overwrite = False, as_json: AsJson = False) -> None:
    """Take the VLM's statistics over VQA samples, before anything is trained."""
    with reported():
        _finish(_stage("anchor", pipeline, overrides, out, overwrite=overwrite), as_json=as_json)


@app.command()
def train(
    pipeline: Pipeline,
    overrides: Overrides = None,
    out: Out = None,
    overwrite: Overwrite = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint, or extend a finished run.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print what would train and the memory it takes, and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune the policy on its demonstrations by one method (method.name)."""
    with reported(_resume_command(pipeline, overrides, out)):
        if resume and overwrite:
            raise UserError("--resume and --overwrite exclude each other")
        _finish(_stage("train", pipeline, overrides, out, overwrite=overwrite, resume=resume, plan=plan), as_json=as_json)


@app.command("eval-vqa")
def eval_vqa(
    pipeline: Pipeline, overrides: Overrides = None, out: Out = None, overwrite: Overwrite = False, as_json: AsJson = False
) -> None:
    """Ask the base and the tuned VLM the same questions, and report what was kept."""
    with reported():
        _finish(_stage("eval_vqa", pipeline, overrides, out, overwrite=overwrite), as_json=as_json)


@app.command("eval-rollout")
def eval_rollout(
    pipeline: Pipeline, overrides: Overrides = None, out: Out = None, overwrite: Overwrite = False, as_json: AsJson = False
) -> None:
    """Run the policy in closed loop, and report its success."""
    with reported():
        _finish(_stage("eval_rollout", pipeline, overrides, out, overwrite=overwrite), as_json=as_json)


@app.command("eval")
def evaluate(
    pipeline: Pipeline, overrides: Overrides = None, out: Out = None, overwrite: Overwrite = False, as_json: AsJson = False
) -> None:
    """Both evaluations, then the joint report."""
    with reported():
        _finish(_stage("evaluate", pipeline, overrides, out, overwrite=overwrite), as_json=as_json)


@app.command()
def check(pipeline: Pipeline, overrides: Overrides = None) -> None:
    """Look at what a run would read, and print what is found; writes nothing."""
    with reported():
        from vla_tune.config import load_config

        import_module("vla_tune.stages.check").run(load_config(pipeline, overrides))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN [RUN ...]", help="Run folders.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the report goes.", show_default=False)],
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Put runs side by side on one page; also while a run is going."""
    with reported():
        from vla_tune.stages.report import run

        _finish(run(runs, out, overwrite=overwrite), as_json=as_json)


def main() -> None:
    """The console script."""
    app()


def _stage(name: str, pipeline: str, overrides: list[str] | None, out: Path | None, **options: bool) -> Artifact | None:
    """Run a stage; the configuration is read first, so that a slip in it is told before torch is imported."""
    from vla_tune.config import load_config

    config = load_config(pipeline, overrides)
    artifact: Artifact | None = import_module(f"vla_tune.stages.{name}").run(config, out or Path("runs") / config.name, **options)
    return artifact


def _finish(artifact: Artifact | None, *, as_json: bool) -> None:
    if artifact is None:
        return
    from vla_tune.console import say

    say(f"wrote {artifact.path}")
    if as_json:
        sys.stdout.write(json.dumps(artifact.metrics) + "\n")


def _resume_command(pipeline: str, overrides: list[str] | None, out: Path | None) -> str:
    where = ["--out", str(out)] if out else []
    return shlex.join(["vla-tune", "train", pipeline, *(overrides or []), *where, "--resume"])
