"""How a pipeline and its overrides become one `Config`.

OmegaConf merges them; an unknown key is an error that names those it is like, a value of a wrong type one that says what it must be.
"""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

from vla_tune.config.check import check, warn_of_unused
from vla_tune.config.overrides import SOURCE, set_by
from vla_tune.config.reading import read_yaml
from vla_tune.config.schema import Config
from vla_tune.config.typed import fit
from vla_tune.errors import UserError, nearest
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
