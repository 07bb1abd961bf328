"""YAML as people write it: text stays text, `1e-3` is a number, a key stands once, and no file swells up when it is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vla_tune.errors import UserError, one_line

MOST_BYTES = 10_000_000
"""A longer file is no configuration."""
MOST_VALUES = 100_000
"""So many a file may hold once its aliases are followed."""
_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]{0,30}|0x[0-9a-fA-F_]{1,30}|0b[01_]{1,90})$")
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9]+(?:[eE][-+]?[0-9]+)?)$")
_NO_NUMBER = re.compile(r"[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$")


@dataclass(frozen=True, repr=False)
class Scalar:
    """A value without quotes that YAML takes for something else than text.

    Args:
        text: as it is written, so that an option that takes text gets `007` and `no` whole.
        value: what YAML reads: a number, true, false or null.

    """

    text: str
    value: bool | float | None

    def __repr__(self) -> str:
        return self.text


class UnreadableError(ValueError):
    """Text is no YAML; the message says where and why."""


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file, its values as text, `Scalar`, lists and mappings.

    Raises:
        UserError: names the file and the line where it cannot be read.

    """
    try:
        values = parse(_text(file))
    except (UnreadableError, OSError) as error:
        raise UserError(f"{file}: not readable as YAML: {one_line(error)}") from None
    if isinstance(values, dict):
        return values
    found = "nothing" if values is None else "a list" if isinstance(values, list) else f"'{values}'"
    raise UserError(f"{file}: expected a mapping of keys to values, such as `seed: 0`, and found {found}")


def parse(text: str) -> Any:
    """What YAML text holds, as `read_yaml` gives it; None where it holds nothing.

    Raises:
        UnreadableError: it is no YAML.

    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        problem = error.problem or one_line(error)
        raise UnreadableError(f"{where}{problem}{'; YAML is indented by spaces' if repr(chr(9)) in problem else ''}") from None
    except RecursionError:
        raise UnreadableError("it is nested too deep") from None
    except Exception as error:  # PyYAML's constructors raise all kinds, a KeyError of `!!bool maybe` among them
        raise UnreadableError(one_line(error)) from None


def _text(file: Path) -> str:
    if file.stat().st_size > MOST_BYTES:
        raise UnreadableError(f"it has {file.stat().st_size / 1e6:.0f} MB, which is no configuration")
    content = file.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UnreadableError(f"line {line} is not UTF-8; save the file in this encoding") from None


class _Loader(yaml.SafeLoader):
    """PyYAML's own but for numbers (`010` and `1:30` are none), dates (they are text), and what it lets pass."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _values_of(node, {}) > MOST_VALUES:
            raise UnreadableError(f"its aliases stand for more than {MOST_VALUES:,} values")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise yaml.constructor.ConstructorError(problem=f"'{key.value}' stands twice", problem_mark=key.start_mark)
            keys.add(key.value if isinstance(key, yaml.ScalarNode) else "")
        return {str(key): value for key, value in super().construct_mapping(node, deep=deep).items()}


def _values_of(node: yaml.Node, counted: dict[int, int]) -> int:
    """How many values a node stands for, aliases followed."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in counted:
        counted[id(node)] = MOST_VALUES + 1  # until it is known: it holds itself
        below = [one for item in node.value for one in (item if isinstance(item, tuple) else (item,))]
        counted[id(node)] = 1 + sum(_values_of(one, counted) for one in below)
    return counted[id(node)]


def _marked(construct: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Scalar]:
    return lambda loader, node: Scalar(node.value, construct(loader, node))


_LEFT_OUT = {f"{_TAG}{kind}" for kind in ("int", "float", "timestamp", "value")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in _LEFT_OUT]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _pattern in (("int", _INT), ("float", _FLOAT), ("float", _NO_NUMBER)):
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", _pattern, list("-+.0123456789"))
for _kind in ("null", "bool", "int", "float"):
    _Loader.add_constructor(f"{_TAG}{_kind}", _marked(getattr(yaml.SafeLoader, f"construct_yaml_{_kind}")))
