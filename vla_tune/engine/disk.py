"""Whether a run's files fit on the disk, before it starts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_tune.engine.checkpoint import FOLDER
from vla_tune.errors import UserError
from vla_tune.vlm.parts import decoder_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from vla_tune.config import Config
    from vla_tune.methods.base import Method


def check_disk(config: Config, method: Method, run: Path) -> None:
    """Stop where what `train` will write cannot fit into the free space of the run's folder.

    Raises:
        UserError: it cannot; with what is needed and what is free.

    """
    place = next(folder for folder in (run.absolute(), *run.absolute().parents) if folder.is_dir())
    states = run / "train.partial" / FOLDER  # those of a run that goes on make room for new ones
    free = shutil.disk_usage(place).free + sum(file.stat().st_size for file in states.rglob("*") if file.is_file())
    need = sum(disk_bytes(config, method).values())
    if need > free:
        raise UserError(
            f"--out: {place} has {free / 1e9:.1f} GB free, and the run writes up to {need / 1e9:.1f} GB; "
            f"make room, give another --out, or lower train.keep_checkpoints={config.train.keep_checkpoints}"
        )


def disk_bytes(config: Config, method: Method) -> dict[str, int]:
    """The bytes that a training writes at most, by what they are; of a stream, without the experts that it will add."""
    train = config.train
    trained = sum(tensor.nbytes for tensor in method.state_dict().values()) if method.trains else 0
    optimized = sum(p.nbytes for p in method.parameters()) if method.trains else 0
    count = min(train.keep_checkpoints + train.keep_best + 1, -(-train.steps // train.checkpoint_every))  # one more while it is written
    return {
        "checkpoints": count * (trained + 2 * optimized),
        "states after each task": len(config.stream.tasks) * trained,
        "model": _bytes(method.model.state_dict().values()),
        "VLM": whole_vlm_bytes(method),
    }


def whole_vlm_bytes(method: Method) -> int:
    """A policy's VLM at full depth, the layers that lerobot has cut included; 0 where the model is no policy."""
    if method.learner.adapter is None:
        return 0
    vlm = method.learner.adapter.vlm
    layers: Any = decoder_of(vlm).layers
    cut = vlm.config.get_text_config().num_hidden_layers - len(layers)
    return _bytes(vlm.state_dict().values()) + cut * _bytes(layers[0].state_dict().values())


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Each storage once: tied tensors are written once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())
