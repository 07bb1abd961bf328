"""`train --plan`: what a run would hold in memory, before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from vla_tune.console import say, table

if TYPE_CHECKING:
    from vla_tune.config import Config
    from vla_tune.methods.base import Method, Term


def show_plan(config: Config, method: Method) -> None:
    """Print what `planned_bytes` says, in MB."""
    sizes = planned_bytes(config, method)
    rows = [[name, f"{size / 1e6:,.1f}"] for name, size in sizes.items() if size]
    table("memory", ["what", "MB"], [*rows, ["total", f"{sum(sizes.values()) / 1e6:,.1f}"]])
    say(f"{config.train.steps} steps of {config.train.batch_size} samples; nothing was trained")


def planned_bytes(config: Config, method: Method) -> dict[str, int]:
    """Parameters, gradients, optimizer state, what the method holds and its second gradients, activations.

    Activations are measured: the bytes that autograd keeps in one forward pass of two samples, scaled to the batch.
    """
    optimized = [*method.model.parameters(), *method.extras.parameters()]
    second = {name: p for term in _terms(method).values() if term.apart for name, p in (term.into or {}).items()}
    trained = sum(p.numel() * p.element_size() for p in optimized if p.requires_grad)
    return {
        "parameters": sum(p.numel() * p.element_size() for p in optimized),
        "gradients": trained,
        "optimizer state (two moments)": 2 * trained,
        f"held by {method.name} (anchor, copies)": held_bytes(method),
        f"second gradients ({method.name})": sum(p.numel() * p.element_size() for p in second.values()),
        f"activations at batch {config.train.batch_size}": _activation_bytes(config, method),
    }


def held_bytes(method: Method) -> int:
    """The tensors that a method keeps beside the policy and what the optimizer trains, each storage once."""
    own = {p.untyped_storage().data_ptr() for p in (*method.model.parameters(), *method.model.buffers(), *method.extras.parameters())}
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

    look({name: value for name, value in vars(method).items() if name not in ("learner", "extras", "_memory")})
    return sum(size for place, size in found.items() if place not in own)


def _activation_bytes(config: Config, method: Method) -> int:
    seen: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in method.model.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = _terms(method)  # the graph must live until its storages are counted, or addresses are used again
    del kept
    return sum(seen.values()) * config.train.batch_size // 2


def _terms(method: Method) -> dict[str, Term]:
    """The losses of one step with two samples."""
    learner: Any = method.learner
    batch = next(learner.batches(0, 0))
    return method.terms(learner.rows(batch, slice(2)))


def show_groups(method: Method, lr: float) -> None:
    """The table of what trains, group by group, each with its learning rate."""
    rates = {id(p): group.get("lr", lr) for group in method.parameter_groups(lr) for p in group["params"]}
    extras = {f"{name} (beside the policy)": dict(module.named_parameters()) for name, module in method.extras.named_children()}
    rows = []
    for name, parameters in {**method.adapter.groups(), **extras}.items():
        trained = [p for p in parameters.values() if p.requires_grad]
        size, count = sum(p.numel() for p in parameters.values()), sum(p.numel() for p in trained)
        state = "frozen" if not trained else "trains" if count == size else "in part"
        rate = f"{rates[id(trained[0])]:g}" if trained else "-"
        rows.append([name, str(len(parameters)), f"{size:,}", f"{count:,}", rate, state])
    table("what trains", ["group", "tensors", "parameters", "trained", "lr", ""], rows)
