"""In what two configurations differ, also where one is of an earlier version."""

from __future__ import annotations

import dataclasses
from typing import Any

from vla_tune.config.schema import Config
from vla_tune.config.values import own_options


def differences(base: dict[str, Any], config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of `config` whose value is not that of `base`."""
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            changed |= differences(base[key], value, f"{prefix}{key}.")
        elif key not in base or base[key] != value:
            changed[f"{prefix}{key}"] = value
    return changed


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """An earlier version's configuration as this version would have it.

    Options that it did not know yet stand at their defaults; those that no section has any more are left out. What is beside the
    sections stays.
    """
    return {**config, **_completed(config, Config(name=""))}


def _completed(values: dict[str, Any], section: Any) -> dict[str, Any]:
    defaults = {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}
    return {
        key: _completed(values.get(key, {}), default) if dataclasses.is_dataclass(default) else values.get(key, default)
        for key, default in defaults.items()
    }


def departures(config: Config, earlier: dict[str, Any], sections: tuple[str, ...], free: list[str]) -> str:
    """Where a configuration departs from an earlier run's in these sections; empty where it does not.

    The keys that are `free` may differ, and what is of other methods.
    """
    now, earlier = config.to_dict(), completed(earlier)
    was, is_now = differences(now, earlier), differences(earlier, now)
    own = own_options(now["method"])
    compared = [
        key
        for key in {**was, **is_now}
        if key.split(".")[0] in sections and key not in free and (not key.startswith("method.") or key.split(".")[1] in own)
    ]
    return ", ".join(f"{key} was {was.get(key)}, is {is_now.get(key)}" for key in compared)
