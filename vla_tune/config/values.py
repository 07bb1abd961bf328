"""Values looked up in a configuration, as an object or as an artifact has it."""

from __future__ import annotations

from typing import Any

from vla_tune.config.schema import Config
from vla_tune.methods.options import section_of


def value_of(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    at: Any = config
    for part in key.split("."):
        at = getattr(at, part)
    return at


def option_of(config: dict[str, Any], key: str) -> Any:
    """The value of a dotted key of a configuration as an artifact has it; None where it has none."""
    at: Any = config
    for name in key.split("."):
        at = at.get(name) if isinstance(at, dict) else None
    return at


def own_options(method: dict[str, Any]) -> dict[str, Any]:
    """A configuration's `method` without the other methods' options."""
    return {key: value for key, value in method.items() if key in ("name", section_of(method["name"]))}


def protects(config: Config) -> bool:
    """Whether a stream is learnt by experts that hold on to an anchor."""
    return config.method.name == "igsp" and config.method.igsp.protect > 0
