"""The table of ratios, and what became slower than a baseline."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch

from benchmarks.rounds import Rounds, Row
from vla_tune.artifacts.folder import write_json
from vla_tune.console import say, table
from vla_tune.programs import cores

SLOWER = 1.05
"""From more than so many times its baseline on, a ratio is told."""


def as_table(measured: list[Rounds]) -> dict[str, Any]:
    """What `table.json` holds: the machine, the rows, and the seconds that the ratios are of."""
    return {"machine": machine(), "rows": [one.row for one in measured], "seconds": {one.name: one.seconds for one in measured}}


def report(found: dict[str, Any], out: Path, baseline: Path) -> None:
    """Print the table, write it to `out`, and say what became slower than the baseline, where there is one."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, found)
    there = found["machine"]
    place = f"{there['cpu']}, {there['cores']} cores, {there['threads']} threads, torch {there['torch']}"
    lines = [
        [
            row["name"],
            f"{row['ratio']:.3f}",
            f"{row['low']:.3f}",
            f"{row['high']:.3f}",
            *(f"{one:.4g}" for one in found["seconds"][row["name"]]),
        ]
        for row in found["rows"]
    ]
    table(f"{place}, {there['gpu'] or 'no GPU'}", ["times (below 1 is faster)", "ratio", "low", "high", "s", "s of the other"], lines)
    say(f"written to {out}")
    if not baseline.is_file():
        say(f"there is no baseline; to make this one, on an idle machine: mkdir -p {baseline.parent} && cp {out} {baseline}")
        return
    before = json.loads(baseline.read_text())
    if before["machine"] != there:
        say(f"the baseline is of another machine: {', '.join(str(value) for value in before['machine'].values())}")
    told = slower(found["rows"], before["rows"])
    say("\n".join(["more than 5 % slower than the baseline:", *told]) if told else "nothing became more than 5 % slower than the baseline")


def slower(rows: list[Row], baseline: list[Row]) -> list[str]:
    """What became more than 5 % slower than its baseline, one line each; names that only one of them has are passed over."""
    before = {row["name"]: row for row in baseline}
    found = []
    for row in rows:
        old = before.get(row["name"])
        if old and row["ratio"] > SLOWER * old["ratio"]:
            apart = "" if row["low"] > old["high"] else "; the two ranges overlap"
            found.append(f"{row['name']}: {row['ratio']:.3f}, baseline {old['ratio']:.3f} ({row['ratio'] / old['ratio'] - 1:+.0%}{apart})")
    return found


def machine() -> dict[str, Any]:
    """The processor, its cores, torch, and the GPU where there is one."""
    info = Path("/proc/cpuinfo")
    models = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    )
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
