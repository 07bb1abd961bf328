"""How a pipeline and its overrides become one `Config`.

OmegaConf checks the types; an unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any

from vla_tune.config.check import check, warn_of_unused
from vla_tune.config.schema import Config
from vla_tune.errors import UserError, nearest, one_line
from vla_tune.resources import available, resource


def load_config(pipeline: str, overrides: list[str] | None = None) -> Config:
    """The pipeline's YAML with the overrides applied.

    Raises:
        UserError: unknown pipeline, unreadable YAML, unknown key, value of a wrong type or out of range.

    """
    file = find_file("pipelines", pipeline, "PIPELINE")
    values = {"name": file.stem, **read_yaml(file)}
    config = structured(Config, values, overrides or [], str(file))
    check(config)
    warn_of_unused(config.method)
    return config


def find_file(kind: str, name: str, argument: str) -> Path:
    """The file of a shipped name of a kind (`pipelines`, `studies`), or the path of a YAML file; `argument` asked for it."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        if not Path(name).is_file():
            raise UserError(f"{argument}: there is no file {name}")
        return Path(name)
    if name not in available(kind):
        hint = nearest(name, available(kind))
        raise UserError(f"{argument}: there is no shipped {argument.lower()} '{name}'; {hint} (or give the path of a YAML file)")
    return resource(kind, f"{name}.yaml")


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file; a UserError names the file and the line where it cannot be read."""
    import yaml

    try:
        values = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file}: not readable as YAML: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected a mapping of keys to values")
    return values


def structured[T](schema: type[T], values: dict[str, Any], overrides: list[str], source: str) -> T:
    """`values`, then `overrides` (KEY=VALUE), as an instance of the dataclass `schema`.

    Raises:
        UserError: unknown key (with the nearest known one), or a value of a wrong type.

    """
    for key in _leaves(values):
        _check_known(schema, key, source)
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise UserError(f"'{override}': an override is written KEY=VALUE, for example train.steps=500")
        _check_known(schema, key, "command line")
    return _typed(schema, values, overrides, source)


def _typed[T](schema: type[T], values: dict[str, Any], overrides: list[str], source: str) -> T:
    """`structured` of keys that are known; only now OmegaConf is imported, so that a slip in a key is told sooner."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    merged = OmegaConf.structured(schema)
    where, key = source, ""
    try:
        merged.merge_with(OmegaConf.create(values))
        where = "command line"
        for override in overrides:
            key = override.partition("=")[0]
            merged.merge_with(OmegaConf.from_dotlist([override]))
        where, key = source, ""
        return typing.cast(T, OmegaConf.to_object(merged))
    except MissingMandatoryValue as error:
        raise UserError(f"{source}: a value is missing: {str(error).splitlines()[0]}") from None
    except TypeError:  # OmegaConf's only word on it, and it names no key
        raise UserError(
            f"{where}: a list stands where a mapping belongs, or a mapping where a list does{f' ({key})' if key else ''}"
        ) from None
    except OmegaConfBaseException as error:
        at = getattr(error, "full_key", None) or key
        raise UserError(f"{where}: {str(error).splitlines()[0]}{f' ({at})' if at else ''}") from None
    except yaml.YAMLError:
        raise UserError(f"{where}: the value of '{override}' is not readable as YAML") from None


def _leaves(values: dict[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in values.items():
        path = f"{prefix}{key}"
        keys += _leaves(value, f"{path}.") if isinstance(value, dict) and value else [path]
    return keys


def _check_known(schema: type, key: str, source: str) -> None:
    """Walk the dotted key down the dataclasses; a plain `dict` field accepts whatever is below it."""
    at, walked = schema, ""
    for part in key.split("."):
        if not dataclasses.is_dataclass(at):
            if at is not Any and typing.get_origin(at) is not dict:
                raise UserError(f"{source}: '{walked[:-1]}' is a single value and has no '{part}' below it")
            return
        fields = typing.get_type_hints(at)
        if part not in fields:
            near = nearest(f"{walked}{part}", [f"{walked}{name}" for name in fields])
            raise UserError(f"{source}: unknown key '{key}'; {near}")
        at, walked = _without_none(fields[part]), f"{walked}{part}."


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(option for option in typing.get_args(hint) if option is not type(None))
    return hint
