"""A lerobot policy folder: its processors name classes that lerobot imports and calls with what the folder says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_tune.errors import UserError, brief
from vla_tune.trust.models import check_model
from vla_tune.trust.packages import is_of_trusted
from vla_tune.trust.snapshots import read_json, snapshot

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
"""By policy type, the steps that lerobot saves with one, each with the fields that it writes."""
FILES = ("policy_preprocessor.json", "policy_postprocessor.json")


def check_policy(source: str) -> None:
    """Check that opening a policy and its processors runs nothing but lerobot's own steps of its type.

    Args:
        source: a folder or a Hub id.

    Raises:
        UserError: naming the file and the step.

    """
    folder = snapshot(source)
    if folder is None or not (folder / "config.json").is_file():
        return  # which opening it tells
    config = _object(folder / "config.json")
    known = STEPS.get(str(config.get("type")), {})
    for name in FILES:
        if (folder / name).is_file():
            steps = _object(folder / name).get("steps")
            if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
                raise UserError(f"{folder / name} is damaged: its 'steps' is no list of steps")
            for step in steps:
                _check_step(folder / name, step, known)


def _check_step(file: Path, step: dict[str, Any], known: dict[str, tuple[str, ...]]) -> None:
    state = step.get("state_file")
    if state is not None and (not isinstance(state, str) or Path(state).name != state or not state.endswith(".safetensors")):
        raise UserError(f"{file}: 'state_file' is {brief(state)}, and must be a safetensors file beside it")
    name, settings = step.get("registry_name"), step.get("config", {})
    if not isinstance(name, str) or name not in known:
        if is_of_trusted(step):
            return
        what = f"the step '{brief(name)}'" if name else f"the class '{brief(step.get('class'))}'"
        raise UserError(
            f"{file}: names {what}, which is none of lerobot's for this type of policy, and would run here; "
            "if it comes from a package that you trust, name that: policy.trust=[PACKAGE]"
        )
    strange = sorted(set(settings) - set(known[name])) if isinstance(settings, dict) else [brief(settings)]
    if strange:
        raise UserError(f"{file}: the step '{name}' has a field '{brief(strange[0])}', which lerobot does not write; remove it")
    if isinstance(tokenizer := settings.get("tokenizer_name"), str):
        check_model(tokenizer)


def _object(file: Path) -> dict[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged: it holds no JSON object")
    return content
