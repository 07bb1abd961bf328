"""What training has made of a model, on disk: the tensors as safetensors, the rest as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vla_tune.artifacts.typed import readable

if TYPE_CHECKING:
    from vla_tune.methods.base import Method


@dataclass(frozen=True)
class State:
    """A moment's copy of what training has made: the tensors on the host, the rest as JSON."""

    tensors: dict[str, Tensor]
    note: str


def state_of(method: Method, more: dict[str, Any]) -> State:
    """The method's state and note, the learner's scales, and `more`; nothing in it changes when training goes on."""
    note = {**more, "note": method.note(), "scales": method.learner.scales()}
    return State(copied(method.state_dict()), json.dumps(note))


def copied(value: Any) -> Any:
    """A deep copy of a state, its tensors contiguous and on the host."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    if isinstance(value, dict):
        return {key: copied(one) for key, one in value.items()}
    return [copied(one) for one in value] if isinstance(value, list | tuple) else value


def write_state(folder: Path, name: str, state: State) -> None:
    """Write `<name>.safetensors` and `<name>.json`."""
    from safetensors.torch import save_file

    save_file(state.tensors, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(state.note)


def read_state(folder: Path, name: str, method: Method, remedy: str) -> dict[str, Any]:
    """Go back to what `write_state` wrote; returns the JSON.

    Raises:
        UserError: it is damaged, or another method's.

    """
    from safetensors.torch import load_file

    with readable(f"{folder / name}:", remedy, "loaded"):
        note: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
        method.load_state_dict(load_file(folder / f"{name}.safetensors"), note["note"])
        if note.get("scales"):  # states of before that time have none
            method.learner.rescale(note["scales"])
    return note
