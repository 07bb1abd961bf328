"""How fast closed-loop episodes run, against lerobot's own loop on the same tasks, seeds, rendering and noise.

    python benchmarks/rollouts.py POLICY [KEY=VALUE ...]

POLICY is a lerobot policy folder. Both loops see the same fixed noise at every call, so that their outcomes can be compared too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from vla_tune.config import Config, load_config
from vla_tune.policies import loading
from vla_tune.programs import cores
from vla_tune.simulators import actor
from vla_tune.stages import eval_rollout


def fix_noise() -> None:
    """Every call of a policy, by whichever loop, starts from the same noise."""

    def fixed(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))

    load = loading.load_policy

    def load_fixed(*arguments: Any, **settings: Any) -> Any:
        policy = load(*arguments, **settings)
        policy.model.sample_noise = lambda shape, device: fixed(*shape[1:]).expand(shape).to(device)
        return policy

    loading.load_policy = load_fixed
    actor.call_noise = lambda task, seed, call, shape: fixed(*shape)  # noqa: ARG005


def timed(config: Config) -> tuple[float, list[dict[str, Any]]]:
    """Seconds of the whole stage, and the rows."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        artifact = eval_rollout.run(config, Path(folder))
        return time.monotonic() - began, pq.read_table(artifact.path / "episodes.parquet").to_pylist()


def main() -> None:
    """Each loop runs a few and then all the episodes; what the rest take gives the pace. Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("policy")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--few", type=int, default=8)
    args = parser.parse_args()
    fix_noise()
    given = [f"train.path={args.policy}", "rollout.videos=0", *args.overrides]
    loops = {"vla-tune": given, "lerobot": [*given, "rollout.compat=lerobot-eval"]}
    pace, rows = {}, {}
    for name, settings in loops.items():
        few = min(timed(load_config("demo", [*settings, f"rollout.episodes={args.few}"]))[0] for _ in range(2))  # the first one imports
        everything, rows[name] = timed(load_config("demo", settings))
        pace[name] = 60 * (len(rows[name]) - args.few) / (everything - few)
    pairs = list(zip(rows["vla-tune"], rows["lerobot"], strict=True))
    print(
        json.dumps(
            {
                "episodes_per_minute": pace,
                "ratio": pace["vla-tune"] / pace["lerobot"],
                "episodes": len(pairs),
                "same_success": sum(one["success"] == other["success"] for one, other in pairs),
                "same_steps": sum(one["steps"] == other["steps"] for one, other in pairs),
                "successes": {name: sum(row["success"] for row in own) for name, own in rows.items()},
                "cores": cores(),
                "torch_threads": torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    main()
