"""The `report` stage: one or several RUN folders side by side, as a page and as numbers; also while a run is going."""

from __future__ import annotations

import importlib.metadata
from datetime import UTC, datetime
from pathlib import Path

from vla_tune.artifacts.folder import Artifact, Draft, write_json
from vla_tune.console import say
from vla_tune.reports.page import numbers, page
from vla_tune.reports.runs import read_runs


def run(runs: list[Path], out: Path, *, overwrite: bool = False) -> Artifact:
    """Write `report.html` and `report.json` into the artifact folder `out`.

    Raises:
        UserError: a run has nothing to report on yet, an artifact is damaged, or `out` exists.

    """
    folders = list(dict.fromkeys(runs))
    read = read_runs(folders)
    with Draft(out, "report", overwrite=overwrite) as draft:
        figures = numbers(read)
        made_at = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        text = page(read, made_at, importlib.metadata.version("vla-tune"))
        (draft.path / "report.html").write_text(text, encoding="utf-8", errors="backslashreplace")  # a file's name may be any bytes
        write_json(draft.path / "report.json", figures)
        artifact = draft.publish(
            config={"runs": [str(folder) for folder in folders]},
            inputs=[artifact.as_input() for one in read for artifact in one.artifacts.values()],
            metrics={"runs": [{"run": one["run"], **one["headline"]} for one in figures["runs"]]},
        )
    say(f"report: {out / 'report.html'}")
    return artifact
