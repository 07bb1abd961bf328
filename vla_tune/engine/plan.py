"""`train --plan`: what a run would hold in memory, before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from vla_tune.console import say, table
from vla_tune.engine.loop import as_floats
from vla_tune.engine.setup import make_loader

if TYPE_CHECKING:
    from vla_tune.config import Config
    from vla_tune.engine.setup import Start
    from vla_tune.methods.base import Method


def show_plan(config: Config, start: Start, method: Method) -> None:
    """Print what `planned_bytes` says, in MB."""
    sizes = planned_bytes(config, start, method)
    rows = [[name, f"{size / 1e6:,.1f}"] for name, size in sizes.items() if size]
    table("memory", ["what", "MB"], [*rows, ["total", f"{sum(sizes.values()) / 1e6:,.1f}"]])
    say(f"{config.train.steps} steps of {config.train.batch_size} samples; nothing was trained")


def planned_bytes(config: Config, start: Start, method: Method) -> dict[str, int]:
    """Parameters, gradients, optimizer state, what the method holds and its second gradients, activations.

    Activations are measured: the bytes that autograd keeps in one forward pass of two samples, scaled to the batch.
    """
    optimized = [*start.policy.parameters(), *method.extras.parameters()]
    trained = sum(p.numel() * p.element_size() for p in optimized if p.requires_grad)
    return {
        "parameters": sum(p.numel() * p.element_size() for p in optimized),
        "gradients": trained,
        "optimizer state (two moments)": 2 * trained,
        f"held by {method.name} (anchor, copies)": held_bytes(method),
        f"second gradients ({method.name})": sum(p.numel() * p.element_size() for p in method.combined_parameters().values()),
        f"activations at batch {config.train.batch_size}": _activation_bytes(config, start, method),
    }


def held_bytes(method: Method) -> int:
    """The tensors that a method keeps beside the policy and what the optimizer trains, each storage once."""
    own = {p.untyped_storage().data_ptr() for p in (*method.policy.parameters(), *method.policy.buffers(), *method.extras.parameters())}
    found: dict[int, int] = {}
    met: set[int] = set()

    def look(value: Any) -> None:
        if id(value) in met:
            return
        met.add(id(value))
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, Mapping):
            for one in value.values():
                look(one)
        elif isinstance(value, list | tuple):
            for one in value:
                look(one)
        elif type(value).__module__.startswith(("vla_tune.", "torch.nn.", "lerobot.", "transformers.")):
            look(vars(value))

    look({name: value for name, value in vars(method).items() if name not in ("policy", "extras", "_memory")})
    return sum(size for place, size in found.items() if place not in own)


def _activation_bytes(config: Config, start: Start, method: Method) -> int:
    seen: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in start.policy.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    small = replace(config, train=replace(config.train, batch_size=2))
    loader = make_loader(small, start.dataset, step=0)
    batch = start.processors[0](as_floats(next(iter(loader))))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = method.losses(batch)  # the graph must live until its storages are counted, or addresses are used again
    del kept
    return sum(seen.values()) * config.train.batch_size // 2
