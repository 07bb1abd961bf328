"""How a pipeline and its overrides become one `Config`.

OmegaConf merges them; an unknown key is an error that names those it is like, a value of a wrong type one that says what it must be.
"""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

from vla_tune.config.check import check, warn_of_unused
from vla_tune.config.overrides import SOURCE, set_by
from vla_tune.config.places import expand, expanded
from vla_tune.config.reading import read_yaml
from vla_tune.config.schema import Config
from vla_tune.config.typed import fit
from vla_tune.errors import UserError, brief, nearest
from vla_tune.resources import available, resource

SUFFIXES = (".yaml", ".yml")
"""Of the files that configurations are read from."""


def load_config(pipeline: str, overrides: list[str] | None = None) -> Config:
    """The pipeline's YAML with the overrides applied.

    Raises:
        UserError: unknown pipeline, unreadable YAML, unknown key, value of a wrong type or out of range.

    """
    file = find_file("pipelines", pipeline, "PIPELINE")
    values = {"name": file.stem, **read_yaml(file)}
    config = structured(Config, values, overrides or [], str(file))
    expand(config)
    check(config)
    warn_of_unused(config.method)
    return config


def find_file(kind: str, name: str, argument: str) -> Path:
    """The file of a shipped name of a kind (`pipelines`, `studies`), or the path of a YAML file; `argument` asked for it."""
    if name in available(kind):
        return resource(kind, f"{name}.yaml")
    place = expanded(argument, name)
    if place.is_file() and (place.suffix in SUFFIXES or "/" in name):
        return place
    raise UserError(f"{argument}: {_why_no_file(kind, name, place, argument.lower())}")


def _why_no_file(kind: str, name: str, place: Path, what: str) -> str:
    if "=" in name:
        return f"'{brief(name)}' is an override; the {what} comes first, for example {available(kind)[0]} {brief(name)}"
    if place.is_dir() and name:
        files = sorted(file.name for file in place.iterdir() if file.suffix in SUFFIXES)
        return f"{name} is a folder; give the path of a YAML file{f' in it, such as {files[0]}' if files else ''}"
    if place.is_file():
        return f"{name} is a file here, and no shipped {what}; its path is ./{name}"
    if "/" not in name and place.suffix not in SUFFIXES:
        return f"there is no shipped {what} '{brief(name)}'; {nearest(name, available(kind))} (or give the path of a YAML file)"
    near = [file.name for file in place.parent.glob("*") if file.suffix in SUFFIXES] if place.parent.is_dir() else []
    if place.stem in available(kind):
        return f"there is no file {brief(name)}; the shipped {what} is called {place.stem}"
    return f"there is no file {brief(name)}{f'; {nearest(place.name, near)}' if near else ''}"


def structured[T](schema: type[T], values: dict[str, Any], overrides: list[str], source: str) -> T:
    """`values`, then `overrides` (KEY=VALUE), as an instance of the dataclass `schema`.

    Raises:
        UserError: unknown key (with those it is like), or a value of a wrong type.

    """
    first = fit(schema, schema, values, "", source)
    layers = [(source, first), *((SOURCE, one) for one in set_by(schema, overrides))]
    return _merged(schema, layers, source)


def _merged[T](schema: type[T], layers: list[tuple[str, dict[str, Any]]], source: str) -> T:
    """Plain values of known keys, one over the other; only now OmegaConf is imported, so that a slip is told sooner."""
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    merged, where = OmegaConf.structured(schema), source
    try:
        for where, values in layers:  # noqa: B007 - the handler names it
            merged.merge_with(OmegaConf.create(values))
        where = source
        return typing.cast(T, OmegaConf.to_object(merged))
    except MissingMandatoryValue as error:
        raise UserError(f"{source}: a value is missing: {str(error).splitlines()[0]}") from None
    except OmegaConfBaseException as error:
        at = getattr(error, "full_key", None)
        raise UserError(f"{where}: {str(error).splitlines()[0]}{f' ({at})' if at else ''}") from None
