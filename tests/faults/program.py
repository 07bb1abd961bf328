"""vla-tune's command line in children of a process that has imported what stages import: exit codes, messages and signals are its own."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moments import Moment, watch

for key, value in {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "MUJOCO_GL": "egl"}.items():
    os.environ.setdefault(key, value)


@dataclass
class Ended:
    """How a command ended.

    code: negative where it died by a signal. changes: the changes to files that were watched; none where it died.
    """

    code: int
    out: str
    err: str
    seconds: float
    changes: list[str]

    @property
    def outcome(self) -> str:
        """Exit code or signal, and whether there was a traceback."""
        how = f"exit {self.code}" if self.code >= 0 else signal.Signals(-self.code).name
        return f"{how}, traceback" if "Traceback (most recent call last)" in self.err else how

    @property
    def told(self) -> str:
        """The last line on stderr."""
        return (self.err.strip().splitlines() or [""])[-1]


def preload() -> None:
    """Import what the stages import."""
    from vla_tune.programs import hush

    hush()
    import lerobot.datasets.lerobot_dataset
    import lerobot.policies.factory
    import lerobot.policies.smolvla.modeling_smolvla  # noqa: F401
    import torch

    import vla_tune.cli
    import vla_tune.stages.eval_rollout
    import vla_tune.stages.eval_vqa
    import vla_tune.stages.train  # noqa: F401

    torch.set_num_threads(1)


def apart(act: Callable[[], object]) -> None:
    """Do something in a child, so that it leaves no thread in a process that forks."""
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        return
    try:
        act()
        os._exit(0)
    finally:
        traceback.print_exc()
        os._exit(1)


def run(arguments: list[str], watched: Path, moment: Moment | None = None, timeout: float = 300) -> Ended:
    """Run `vla-tune ARGUMENTS` to its end, or to the moment; a child that hangs is killed."""
    with tempfile.TemporaryDirectory() as name:
        folder, began = Path(name), time.monotonic()
        child = _start(arguments, folder, watched, moment)
        due = moment.seconds if moment else None
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            seconds = time.monotonic() - began
            if moment and due is not None and seconds >= due:
                os.kill(child, moment.number)
                due = None
            if seconds > timeout:
                os.kill(child, signal.SIGKILL)
                timeout = float("inf")
            time.sleep(0.005)
        files = [folder / name for name in ("1", "2", "changes")]
        out, err, changes = (file.read_text(errors="replace") if file.exists() else "" for file in files)
        return Ended(os.waitstatus_to_exitcode(ended[1]), out, err, time.monotonic() - began, changes.splitlines())


def _start(arguments: list[str], folder: Path, watched: Path, moment: Moment | None) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for number in (1, 2):
            os.dup2(os.open(folder / str(number), os.O_WRONLY | os.O_CREAT), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        changes = watch(watched, moment)
        code = _main(arguments)
        (folder / "changes").write_text("\n".join(changes))
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _main(arguments: list[str]) -> int:
    from vla_tune.cli import main

    sys.argv = ["vla-tune", *arguments]
    try:
        main()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 0
