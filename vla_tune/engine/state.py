"""What training has made of a model, on disk: the tensors as safetensors, the rest as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_tune.errors import UserError

if TYPE_CHECKING:
    from vla_tune.methods.base import Method


def write_state(folder: Path, name: str, method: Method, more: dict[str, Any]) -> None:
    """Write `<name>.safetensors` and `<name>.json`: the method's state and note, the learner's scales, and `more`."""
    from safetensors.torch import save_file

    state = {key: tensor.contiguous().clone() for key, tensor in method.state_dict().items()}
    save_file(state, folder / f"{name}.safetensors")
    note = {**more, "note": method.note(), "scales": method.learner.scales()}
    (folder / f"{name}.json").write_text(json.dumps(note))


def read_state(folder: Path, name: str, method: Method, remedy: str) -> dict[str, Any]:
    """Go back to what `write_state` wrote; returns the JSON.

    Raises:
        UserError: it is damaged, or another method's.

    """
    from safetensors.torch import load_file

    with readable(f"{folder / name}:", remedy):
        note: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
        method.load_state_dict(load_file(folder / f"{name}.safetensors"), note["note"])
        if note.get("scales"):  # states of before that time have none
            method.learner.rescale(note["scales"])
    return note


@contextmanager
def readable(state: str, remedy: str) -> Iterator[None]:
    """Turn whatever a damaged state raises in here into a UserError that names it and says what to do."""
    from safetensors import SafetensorError

    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{state} cannot be loaded ({' '.join(str(error).split())[:200]}); {remedy}") from None
