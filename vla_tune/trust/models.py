"""A folder that transformers opens: a VLM, a CLIP, a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_tune.errors import UserError, brief
from vla_tune.trust.snapshots import fields, read_json, snapshot

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
CONVERT = "open it with transformers where you trust it, and save it with save_pretrained(FOLDER)"


def check_model(source: str) -> None:
    """Check that opening a model runs no code that comes with it, and reads no pickle.

    Args:
        source: a folder or a Hub id.

    Raises:
        UserError: naming the file and the field.

    """
    folder = snapshot(source)
    if folder is None:
        return
    for file in sorted(folder.glob("*.json")):
        if file.stat().st_size < LARGEST:
            for key, value in fields(read_json(file)):
                _check_field(file, key, value)
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder} holds an adapter (adapter_config.json), whose base transformers would open too; merge it into its model first"
        )
    weights = [file.name for file in folder.iterdir() if file.suffix in PICKLED]
    if Path(source).expanduser().is_dir() and weights and not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder / min(weights)} is a pickle, which can run code when it is read; {CONVERT}, which writes safetensors")


LARGEST = 2_000_000
"""Bytes; configurations are smaller, and a tokenizer's table of tokens (`tokenizer.json`) names no code."""


def _check_field(file: Path, key: str, value: Any) -> None:
    if key == "auto_map" and value:
        raise UserError(
            f"{file}: 'auto_map' names code of its own ({brief(value)}), which vla-tune does not run; {CONVERT} under a stock class"
        )
    if key == "trust_remote_code" and value:
        raise UserError(f"{file}: 'trust_remote_code' is set, and vla-tune runs no code that comes with a model; remove it")
    if key.endswith("attn_implementation") and isinstance(value, str) and "/" in value:
        raise UserError(f"{file}: '{key}' names code on the Hub ({brief(value)}), which vla-tune does not run; remove it")
