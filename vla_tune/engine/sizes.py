"""How many parameters train, step by step."""

from __future__ import annotations


class Sizes:
    """The parameters that trained at each step of a task, as runs of `[parameters, steps]`."""

    def __init__(self, steps: list[list[int]] | None = None) -> None:
        self.steps = steps or []

    def add(self, count: int, steps: int = 1) -> None:
        """So many trained in the next step, or the next few."""
        if not self.steps or self.steps[-1][0] != count:
            self.steps.append([count, 0])
        self.steps[-1][1] += steps

    def summary(self) -> dict[str, float]:
        """At the first step, at the last, and the mean over steps."""
        total = sum(steps for _, steps in self.steps)
        return {
            "first": self.steps[0][0],
            "last": self.steps[-1][0],
            "mean": sum(count * steps for count, steps in self.steps) / total,
        }
