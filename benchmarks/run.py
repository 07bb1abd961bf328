"""How fast we are beside lerobot, and methods beside plain fine-tuning, as ratios of what takes turns in one process.

    python -m benchmarks.run [--only PART ...] [--quick]

Prints a table, writes runs/bench/table.json and says what became more than 5 % slower than results/bench/table.json. Every ratio is
one of times: below 1 is faster.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vla_tune.console import say
from vla_tune.programs import reported

if TYPE_CHECKING:
    from benchmarks.rounds import Rounds

OUT = Path("runs", "bench", "table.json")
BASELINE = Path("results", "bench", "table.json")
PARTS = ("startup", "loading", "demo", "larger")
WORKERS = (0, 2)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write and compare."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="measure these alone")
    parser.add_argument("--quick", action="store_true", help="one round of one step each, to see that everything runs")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args(arguments)
    with reported("the same command again"):
        from benchmarks.table import as_table, report

        began, measured = time.monotonic(), []
        with tempfile.TemporaryDirectory() as folder:
            for part in asked.only:
                for one in measure(part, Path(folder), quick=asked.quick):
                    say(f"[{(time.monotonic() - began) / 60:5.1f} min] {one.name}: {one.row['ratio']:.3f}")
                    measured.append(one)
        report(as_table(measured), asked.out, BASELINE)


def measure(part: str, folder: Path, *, quick: bool) -> Iterator[Rounds]:
    """The ratios of one part, each as it comes."""
    from benchmarks import anchors, sizes, startup, steps

    if part == "startup":
        yield startup.measure(1 if quick else 4)
    elif part == "loading":
        yield from _loading(folder, quick=quick)
    elif part == "demo":
        config = sizes.demo(*(("anchor.samples=50", "anchor.gradients=10") if quick else ()))
        anchor = anchors.anchor_of(config, folder / "demo")
        yield anchors.measure(config, 1 if quick else 3)
        yield from steps.measure(steps.Size("demo", config, anchor, *((1, 1, 1, 1) if quick else (8, 5, 8, 10))))
    else:
        config = sizes.larger(folder / "larger")
        anchor = anchors.anchor_of(config, folder / "larger-run")
        yield from steps.measure(steps.Size("576 x 30", config, anchor, *((1, 1, 1, 1) if quick else (6, 1, 3, 10))))


def _loading(folder: Path, *, quick: bool) -> Iterator[Rounds]:
    from benchmarks import loading
    from benchmarks.rounds import Rounds
    from benchmarks.videos import video_dataset

    root, what = video_dataset(folder)
    say(f"videos: {what}")
    dataset = loading.open_root(root)
    for workers in WORKERS:
        rates = loading.measure(dataset, workers=workers, **({"count": 2, "rounds": 1} if quick else {}))
        ours, theirs = ([1 / rate for rate in one] for one in (rates.ours, rates.lerobot))
        yield Rounds(f"video item, {workers} workers: our loader against lerobot's", ours, theirs)


if __name__ == "__main__":
    main()
