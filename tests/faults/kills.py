"""Kill a stage at random and at ugly moments, go on from there, and compare the end with that of a run that nobody disturbed.

Right is: what was killed goes on and ends in the same bytes, and nothing is left beside it; SIGINT ends in exit code 130 and SIGTERM in
143, with one message and no traceback.
"""

from __future__ import annotations

import random
import shutil
import signal
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # what tests share
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this project, whichever is installed
import program
from moments import Moment
from targets import TARGETS, Target, contents, make_base, prepare

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
MOST = 5
"""Kills of one run; from then on it is left alone."""


@dataclass
class Kills:
    """Kills of one target.

    outcomes: how often a signal ended how. faults: what was not right.
    """

    name: str
    base: Path
    folder: Path
    random: random.Random
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def target(self) -> Target:
        """What is killed."""
        return TARGETS[self.name]

    def play(self, kills: int) -> None:
        """So many kills, over as many runs as it takes."""
        whole = prepare(self.target, self.base, self.folder / "undisturbed")
        ended = self._go_on(whole, None)
        assert ended.code == 0, f"the undisturbed run of {self.name} failed: {ended.err}"
        wanted, number = contents(whole / self.target.stage), 0
        while self.outcomes.total() < kills:
            number += 1
            run = prepare(self.target, self.base, self.folder / f"run-{number}")
            left = min(MOST, kills - self.outcomes.total())
            if self._ends([self._moment(ended) for _ in range(left)], run):
                self._compare(run, wanted)

    def _moment(self, whole: program.Ended) -> Moment:
        """One in four after some seconds, the others at a change: half of these at an ugly one."""
        number = self.random.choice(SIGNALS)
        draw = self.random.random()
        if draw < 0.25:
            return Moment(number, seconds=self.random.uniform(0, whole.seconds))
        ugly = [part for part in self.target.ugly if any(part in change for change in whole.changes)]
        part = self.random.choice(ugly) if draw < 0.625 else ""
        return Moment(number, part, self.random.randint(1, sum(part in change for change in whole.changes)))

    def _ends(self, moments: list[Moment], run: Path) -> bool:
        """Go on after every kill until the stage is done; whether it gets there."""
        artifact = run / self.target.stage / "artifact.json"
        before = artifact.read_bytes() if artifact.exists() else b""
        for moment in [*moments, None]:
            ended = self._go_on(run, moment)
            if moment and ended.code not in (0, 2):
                self._judge(moment, ended)
            elif ended.code:
                self.faults.append(f"{run.name} does not go on: {ended.outcome}: {ended.told}")
                return False
            if artifact.exists() and artifact.read_bytes() != before:
                return True
        return False

    def _go_on(self, run: Path, moment: Moment | None) -> program.Ended:
        """The command, with `--resume` where it says so."""
        arguments = self.target.arguments(self.base, run)
        ended = program.run(arguments, run, moment)
        return program.run([*arguments, "--resume"], run, moment) if ended.code == 2 and "--resume" in ended.err else ended

    def _judge(self, moment: Moment, ended: program.Ended) -> None:
        name = signal.Signals(moment.number).name
        self.outcomes[f"{name}: {ended.outcome}"] += 1
        wanted = CODES[signal.Signals(moment.number)]
        lines = [line for line in ended.err.splitlines() if not line.startswith("warning: ")]
        if ended.code != wanted or ended.outcome != (f"exit {wanted}" if wanted > 0 else name) or len(lines) > 2:
            self.faults.append(f"{name} {moment}: {ended.outcome}, not {wanted}: {ended.err[-600:]}")

    def _compare(self, run: Path, wanted: dict[str, str]) -> None:
        if (run / f".{self.target.stage}.replaced").exists():
            self._go_on(run, None)  # killed once all was done but this; the next command that meets it sees to it
        found = contents(run / self.target.stage)
        other = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        stages = {self.target.stage, *(TARGETS[name].stage for name in self.target.needs)}
        left = sorted(path.name for path in run.iterdir() if path.name not in stages)
        self.faults += [f"{run.name}: another end: {', '.join(other)}"] if other else []
        self.faults += [f"{run.name}: left over: {', '.join(left)}"] if left else []
        if not other and not left:
            shutil.rmtree(run)


def play(out: Path, names: dict[str, int], seed: int) -> list[Kills]:
    """Kill these targets, each so often."""
    program.preload()
    make_base(out / "base", set(names))
    played = [Kills(name, out / "base", out / name, random.Random(f"{seed} {name}")) for name in names]  # noqa: S311
    for one in played:
        one.play(names[one.name])
    return played
