"""A folder that transformers opens: a VLM, a CLIP, a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vla_tune.errors import UserError, brief
from vla_tune.trust.snapshots import fields, read_json, read_object, snapshot

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
SAFE = ("model.safetensors", "model.safetensors.index.json")
"""What transformers takes before it looks for a pickle."""
UNREAD = ("training_args.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")
"""Pickles of a finished training, which opening a model does not read."""
TOKENS = ("tokenizer.json", "vocab.json", "added_tokens.json")
"""Tables of tokens, whose keys are text; they name no code."""
CONVERT = "open it with transformers where you trust it, and save it with save_pretrained(FOLDER)"


def check_model(source: str, *, fetch: bool = True) -> None:
    """Check that opening a model runs no code that comes with it, and reads no pickle.

    Args:
        source: a folder or a Hub id.
        fetch: whether the Hub may be asked for what is not in its cache.

    Raises:
        UserError: naming the file and the field.

    """
    folder = snapshot(source, fetch=fetch)
    if folder is None:
        return
    for file in sorted(folder.glob("*.json")):
        if file.name.endswith(".index.json"):
            _check_shards(file)
        elif file.name not in TOKENS:
            for key, value in fields(read_json(file)):
                _check_field(file, key, value)
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder} holds an adapter (adapter_config.json), whose base transformers would open too; merge it into its model first"
        )
    weights = [file.name for file in folder.iterdir() if file.suffix in PICKLED and file.name not in UNREAD]
    if Path(source).expanduser().is_dir() and weights and not any((folder / name).is_file() for name in SAFE):
        raise UserError(f"{folder / min(weights)} is a pickle, which can run code when it is read; {CONVERT}, which writes safetensors")


def _check_shards(file: Path) -> None:
    """An index names the files that a loader reads, by any name."""
    if not file.name.endswith(".safetensors.index.json"):
        return  # a pickle's own, which is not read beside safetensors
    shards = read_object(file).get("weight_map")
    for shard in shards.values() if isinstance(shards, dict) else ():
        if not is_file_beside(shard, ".safetensors"):
            raise UserError(f"{file}: names the weights {brief(shard)}, and must name safetensors files beside it")


def is_file_beside(name: Any, *suffixes: str) -> bool:
    """Whether something names a file of one of these kinds in the same folder."""
    return isinstance(name, str) and Path(name).name == name and name.endswith(suffixes)


def _names_kernel(value: Any) -> bool:
    """Whether an implementation is a repository on the Hub: transformers fetches and runs those; a model's parts may have their own."""
    return any("/" in str(one) for one in (value.values() if isinstance(value, dict) else [value]))


BAD: dict[str, tuple[Callable[[Any], bool], str]] = {
    "auto_map": (bool, f"names code that comes with it, which vla-tune does not run; {CONVERT} under a stock class"),
    "trust_remote_code": (bool, "is set, and vla-tune runs no code that comes with a model; remove it"),
    "attn_implementation": (_names_kernel, "names code on the Hub, which vla-tune does not run; remove it"),
    "experts_implementation": (_names_kernel, "names code on the Hub, which vla-tune does not run; remove it"),
    "transformers_weights": (
        lambda value: value is not None and not is_file_beside(value, ".safetensors", ".safetensors.index.json"),
        "must name a safetensors file beside it; remove it",
    ),
}
"""Fields that make transformers run or read what it should not: when they do, and what to say."""


def _check_field(file: Path, key: str, value: Any) -> None:
    known = BAD.get(key.removeprefix("_").removesuffix("_internal"))
    if known and known[0](value):
        raise UserError(f"{file}: '{key}' ({brief(value)}) {known[1]}")
