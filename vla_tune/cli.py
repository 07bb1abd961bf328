"""The command line. It parses and reports; a stage and its heavy imports are loaded when the stage runs."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from vla_tune.errors import UserError
from vla_tune.interrupts import at_once
from vla_tune.programs import reported

if TYPE_CHECKING:
    from vla_tune.artifacts.folder import Artifact
    from vla_tune.config import Config
    from vla_tune.config.places import Stage


class Program(typer.core.TyperGroup):
    """Commands whose misuse is told in one line, as every other mistake."""

    def main(self, *args: Any, **extra: Any) -> Any:
        alone = extra.pop("standalone_mode", True)
        try:
            ended = super().main(*args, **{**extra, "standalone_mode": False})
        except Exception as error:
            if not alone or not hasattr(error, "format_message"):  # click's, which Typer has had under two names
                raise
            context = getattr(error, "ctx", None)
            hint = f"; see {context.command_path} --help" if context else ""
            sys.stderr.write(f"vla-tune: {error.format_message().rstrip('.')}{hint}\n")
            sys.exit(2)
        if alone:
            sys.exit(ended if isinstance(ended, int) else 0)
        return ended


app = typer.Typer(
    cls=Program,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Fine-tune vision-language-action models without destroying the vision-language model inside them.",
)

SLIPS = {"ignore_unknown_options": True}
"""`--steps 100` reaches the overrides, which say how it is written."""
Pipeline = Annotated[
    str, typer.Argument(metavar="PIPELINE", help="A shipped pipeline's name, or the path of a YAML file.", show_default=False)
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE ...]", help="Dotted keys of the schema.", show_default=False)]
Out = Annotated[str | None, typer.Option("--out", metavar="RUN", help="The run's folder; default: runs/<pipeline>.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a finished stage.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the stage's metrics as the last line of stdout.")]


@app.callback(invoke_without_command=True)
def root(context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Four stages joined by artifact folders: anchor, train, eval-vqa, eval-rollout."""
    if version:
        typer.echo(f"vla-tune {importlib.metadata.version('vla-tune')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


@app.command(context_settings=SLIPS)
def anchor(pipeline: Pipeline, overrides: Overrides = None, out: Out = None, overwrite: Overwrite = False, as_json: AsJson = False) -> None:
    """Take the VLM's statistics over VQA samples, before anything is trained."""
    with reported():
        _finish(_stage("anchor", pipeline, overrides, out, overwrite=overwrite), as_json=as_json)


@app.command(context_settings=SLIPS)
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


@app.command("eval-vqa", context_settings=SLIPS)
def eval_vqa(
    pipeline: Pipeline, overrides: Overrides = None, out: Out = None, overwrite: Overwrite = False, as_json: AsJson = False
) -> None:
    """Ask the base and the tuned VLM the same questions, and report what was kept."""
    with reported():
        _finish(_stage("eval_vqa", pipeline, overrides, out, overwrite=overwrite), as_json=as_json)


@app.command("eval-rollout", context_settings=SLIPS)
def eval_rollout(
    pipeline: Pipeline, overrides: Overrides = None, out: Out = None, overwrite: Overwrite = False, as_json: AsJson = False
) -> None:
    """Run the policy in closed loop, and report its success."""
    with reported():
        _finish(_stage("eval_rollout", pipeline, overrides, out, overwrite=overwrite), as_json=as_json)


@app.command("eval", context_settings=SLIPS)
def evaluate(
    pipeline: Pipeline, overrides: Overrides = None, out: Out = None, overwrite: Overwrite = False, as_json: AsJson = False
) -> None:
    """Both evaluations, then the joint report."""
    with reported():
        _finish(_stage("evaluate", pipeline, overrides, out, overwrite=overwrite), as_json=as_json)


@app.command(context_settings=SLIPS)
def check(pipeline: Pipeline, overrides: Overrides = None) -> None:
    """Look at what a run would read, and print what is found; writes nothing."""
    with reported():
        config = _config("check", pipeline, overrides)
        import_module("vla_tune.stages.check").run(config)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN [RUN ...]", help="Run folders.", show_default=False)],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Where the report goes.", show_default=False)],
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Put runs side by side on one page; also while a run is going."""
    with reported():
        from vla_tune.stages.report import run

        _finish(run(runs, _folder(out), overwrite=overwrite), as_json=as_json)


def main() -> None:
    """The program, from its arguments to its exit code."""
    at_once()
    app()


def _stage(name: Stage, pipeline: str, overrides: list[str] | None, out: str | None, **options: bool) -> Artifact | None:
    """Run a stage; the configuration is looked at first, so that a slip in it is told before lerobot is imported."""
    run = None if out is None else _folder(out)
    config = _config(name, pipeline, overrides, computes=not options.get("plan"))
    artifact: Artifact | None = import_module(f"vla_tune.stages.{name}").run(config, run or Path("runs") / config.name, **options)
    return artifact


def _config(stage: Stage, pipeline: str, overrides: list[str] | None, *, computes: bool = True) -> Config:
    from vla_tune.config import Config, load_config
    from vla_tune.config.overrides import given_twice, set_by

    given = overrides or []
    if pipeline.startswith("-"):
        set_by(Config, [pipeline, *given])  # which says how it is written
    config = load_config(pipeline, given)
    for key in given_twice(given):
        from vla_tune.console import warn

        warn(f"{key} is given twice; the last one counts")
    from vla_tune.stages.early import check_early

    check_early(config, stage, computes=computes)
    return config


def _folder(out: str) -> Path:
    """The folder that `--out` names.

    Raises:
        UserError: it names none.

    """
    if not out or out.startswith("-"):
        raise UserError(f"--out: give a folder{f' before {out}' if out else ''}")
    folder = Path(out).expanduser()
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise UserError(f"--out={out}: {place} is a file; give a folder")
    return folder


def _finish(artifact: Artifact | None, *, as_json: bool) -> None:
    if artifact is None:
        return
    from vla_tune.console import say

    say(f"wrote {artifact.path}")
    if as_json:
        sys.stdout.write(json.dumps(artifact.metrics) + "\n")


def _resume_command(pipeline: str, overrides: list[str] | None, out: str | None) -> str:
    where = ["--out", out] if out else []
    return shlex.join(["vla-tune", "train", pipeline, *(overrides or []), *where, "--resume"])
