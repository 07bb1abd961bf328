"""A lerobot policy folder: its processors name classes that lerobot imports and calls with what the folder says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_tune.errors import UserError, brief
from vla_tune.trust.models import check_model, is_file_beside
from vla_tune.trust.packages import is_of_trusted
from vla_tune.trust.snapshots import fields, read_object, snapshot

SCALING = ("features", "norm_map", "eps", "normalize_observation_keys")
COMMON = {
    "rename_observations_processor": ("rename_map",),
    "to_batch_processor": (),
    "tokenizer_processor": ("tokenizer_name", "max_length", "task_key", "padding_side", "padding", "truncation"),
    "device_processor": ("device", "float_dtype"),
    "normalizer_processor": SCALING,
    "unnormalizer_processor": SCALING,
}
RELATIVE = {"relative_actions_processor": ("enabled", "exclude_joints", "action_names"), "absolute_actions_processor": ("enabled",)}
STEPS: dict[str, dict[str, tuple[str, ...]]] = {
    "smolvla": {**COMMON, "smolvla_new_line_processor": ()},
    "pi0": {**COMMON, **RELATIVE, "pi0_new_line_processor": ()},
    "pi05": {**COMMON, **RELATIVE, "pi05_prepare_state_tokenizer_processor_step": ("max_state_dim", "task_key")},
}
"""By policy type, the steps that lerobot saves with one, each with the fields that it writes; of other packages' types, `COMMON`."""
FILES = ("policy_preprocessor.json", "policy_postprocessor.json")


def policy_type(source: str) -> str:
    """The type of a policy by its configuration; nothing where there is no policy, which opening it tells.

    Raises:
        UserError: the configuration cannot be read.

    """
    folder = snapshot(source)
    if folder is None or not (folder / "config.json").exists():
        return ""
    return str(read_object(folder / "config.json").get("type"))


def check_policy(source: str, *, fetch: bool = True) -> None:
    """Check that opening a policy and its processors runs nothing but lerobot's own steps of its type.

    Args:
        source: a folder or a Hub id.
        fetch: whether the Hub may be asked for the tokenizers that its steps name.

    Raises:
        UserError: naming the file and the step.

    """
    folder, kind = snapshot(source), policy_type(source)
    if folder is None or not kind:
        return
    for file in (folder / name for name in FILES):
        if file.exists():
            steps = read_object(file).get("steps")
            if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
                raise UserError(f"{file} is damaged: its 'steps' is no list of steps")
            for step in steps:
                _check_step(file, step, STEPS.get(kind, COMMON), fetch=fetch)


def _check_step(file: Path, step: dict[str, Any], known: dict[str, tuple[str, ...]], *, fetch: bool) -> None:
    state, settings = step.get("state_file"), step.get("config", {})
    if "state_file" in step and not is_file_beside(state, ".safetensors"):
        raise UserError(f"{file}: 'state_file' is {brief(state)}, and must be a safetensors file beside it")
    if not isinstance(settings, dict):
        raise UserError(f"{file} is damaged: a step's 'config' is {brief(settings)}")
    name = step.get("registry_name")
    listed = isinstance(name, str) and name in known
    if not listed and not is_of_trusted(step):
        what = f"the step '{brief(name)}'" if name else f"the class '{brief(step.get('class'))}'"
        raise UserError(
            f"{file}: names {what}, which is none of lerobot's for this type of policy, and would run here; "
            "if it comes from a package that you trust, name that: policy.trust=[PACKAGE]"
        )
    strange = sorted(set(settings) - set(known[str(name)])) if listed else []
    if strange:
        raise UserError(f"{file}: the step '{name}' has a field '{brief(strange[0])}', which lerobot does not write; remove it")
    if listed:
        _check_tokenizer(file, settings.get("tokenizer_name"), fetch=fetch)
    else:
        _check_named(file, settings, fetch=fetch)


def _check_tokenizer(file: Path, name: Any, *, fetch: bool) -> None:
    if name is not None and not isinstance(name, str):
        raise UserError(f"{file} is damaged: 'tokenizer_name' is {brief(name)}")
    if name:
        check_model(name, fetch=fetch)


def _check_named(file: Path, settings: dict[str, Any], *, fetch: bool) -> None:
    """What the fields of a trusted package's step name: a folder, a model on the Hub. To trust a package is not to trust these."""
    for key, value in fields(settings):
        if key == "trust_remote_code" and value:
            raise UserError(f"{file}: 'trust_remote_code' is set, and vla-tune runs no code that comes with a model; remove it")
        on_hub = any(part in key for part in ("tokenizer", "model", "pretrained"))
        if isinstance(value, str) and value and (Path(value).is_dir() or on_hub):
            check_model(value, fetch=fetch)
