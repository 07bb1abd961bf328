"""What users' machines do to a run, and how each ended: `python tests/faults/run.py [--kills N] [--seed S] [TARGET[=KILLS] ...]`.

The long version is `make faults`; CI plays a few kills of each target (`test_kills.py`). A table by outcome is printed; the exit code is 1
where anything is not right, and then what was killed stays for a look.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from kills import Kills, play
from targets import TARGETS


def show(played: list[Kills]) -> None:
    """The table, and the faults."""
    for one in played:
        for outcome, count in sorted(one.outcomes.items()):
            print(f"{one.name:8} {count:4}  {outcome}")
        print(f"{one.name:8} {one.outcomes.total():4}  in all, {len(one.faults)} faults")
    for one in played:
        for fault in one.faults:
            print(f"FAULT {one.name}: {fault}")


def main() -> int:
    """Play, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET[=KILLS]", help=f"{', '.join(TARGETS)}; default: all")
    parser.add_argument("--kills", type=int, default=40, help="of each target that names no number")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    out = Path(tempfile.mkdtemp(prefix="faults-"))
    asked = (one.partition("=") for one in given.targets or TARGETS)
    played = play(out, {name: int(kills or given.kills) for name, _, kills in asked}, given.seed)
    show(played)
    faults = sum(len(one.faults) for one in played)
    if faults:
        print(f"{faults} faults; what is left lies in {out}")
    else:
        shutil.rmtree(out)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
