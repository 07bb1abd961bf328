"""The names of Meta-World's tasks and ours, and what they are told; imports neither Meta-World nor lerobot."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from vla_tune.errors import UserError, nearest

FIRST_SEED = 1_000_000
"""Demonstrations take the seeds from here on, rollouts those below: no rollout repeats a demonstration."""
MAX_STEPS = 500
"""Meta-World ends every episode here."""
COLOURS = {"red": (0.9, 0.1, 0.1), "green": (0.1, 0.75, 0.2), "blue": (0.15, 0.25, 0.95), "yellow": (0.95, 0.9, 0.1)}
TOUCH_TASKS = {f"touch-{colour}": f"Touch the {colour} ball" for colour in COLOURS}
"""Our tasks in its scene (`touch.py`), each with its instruction."""


def _lerobots() -> dict[str, dict[str, object]]:
    """lerobot's table of Meta-World, read without importing lerobot."""
    spec = importlib.util.find_spec("lerobot")
    assert spec is not None
    assert spec.origin is not None
    found: dict[str, dict[str, object]] = json.loads((Path(spec.origin).parent / "envs" / "metaworld_config.json").read_text())
    return found


_TABLE = _lerobots()
INSTRUCTIONS: dict[str, str] = {**{task: str(told) for task, told in _TABLE["TASK_DESCRIPTIONS"].items()}, **TOUCH_TASKS}
"""Task to instruction, in lerobot's words."""
GROUPS: dict[str, list[str]] = {**_TABLE["DIFFICULTY_TO_TASKS"], "touch": list(TOUCH_TASKS)}  # type: ignore[dict-item]
"""lerobot's difficulties (`easy`, ...), and ours."""


def check_task(task: str) -> None:
    """Raise a UserError that names the nearest task unless Meta-World has this one."""
    if task not in INSTRUCTIONS:
        raise UserError(f"Meta-World has no task '{task}'; {nearest(task, list(INSTRUCTIONS))}")
