"""One walk over the schema: it lists every option with its bounds and meaning, and checks a configuration's values."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from typing import Any

from vla_tune.config.arithmetic import check_arithmetic
from vla_tune.config.places import check_folder, check_manifests
from vla_tune.config.schema import Config, DataConfig, StreamConfig
from vla_tune.config.values import value_of
from vla_tune.config.words import check_device_name, check_name
from vla_tune.errors import UserError, brief, nearest
from vla_tune.fields import Option, option_of_field
from vla_tune.methods.options import STREAM_METHODS, TASK_METHODS, MethodConfig, section_of
from vla_tune.trust.packages import check_packages


@dataclass(frozen=True)
class Key:
    """An option of the schema.

    Args:
        key: dotted; `stream.tasks[].name` is the name of an item of a list.
        kind: its type, as it is annotated.
        default: a fresh one; `dataclasses.MISSING` where it must be given.
        section: the dataclass that it is a field of.
        option: its bounds and its meaning.

    """

    key: str
    kind: str
    default: Any
    section: type
    option: Option

    @property
    def values(self) -> str:
        """What a value must be, such as `at least 1`; empty where any of its type will do."""
        return self.option.described(of_floats="float" in self.kind)

    @property
    def help(self) -> str:
        """What the value does."""
        return self.option.help


def walk(section: type = Config, prefix: str = "") -> Iterator[Key]:
    """Every option of a section, and of those below it, in the order of the schema.

    Args:
        section: a dataclass.
        prefix: what stands before each key, such as `method.aegis.`.

    """
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        key, hint = f"{prefix}{field.name}", hints[field.name]
        option = option_of_field(field)
        if option is None:
            yield from walk(hint, f"{key}.")
            continue
        yield Key(key, str(field.type), _default(field), section, option)
        if items := next((one for one in typing.get_args(hint) if isinstance(one, type) and dataclasses.is_dataclass(one)), None):
            yield from walk(items, f"{key}[].")


def check(config: Config) -> None:
    """Nothing, where every value is one that its option takes.

    Raises:
        UserError: names the first key whose value it does not take, and what it must be.

    """
    _check_section(config)
    _check_method(config.method.name, of_stream=bool(config.stream.tasks))
    _check_needs(config, config)
    check_name(config.name)
    check_device_name(config.device)
    check_packages(config.policy.trust)
    check_manifests(config)
    _check_data(config.data)
    check_arithmetic(config)
    _check_compile(config)
    _check_stream(config.stream)


def warn_of_unused(method: MethodConfig) -> None:
    """Options of a method that is not chosen do nothing, and whoever changed one should know."""
    for section in dataclasses.fields(method):
        options = getattr(method, section.name)
        if section.name == section_of(method.name) or not dataclasses.is_dataclass(options):
            continue
        for option in dataclasses.fields(options):
            value = getattr(options, option.name)
            if value != _default(option):
                from vla_tune.console import warn

                warn(f"method.{section.name}.{option.name}={value} is not used: method.name is {method.name}")


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _fields(section: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Option, Any]]:
    """Key, field, option and value of everything in a configuration."""
    for field in dataclasses.fields(section):
        value, option = getattr(section, field.name), option_of_field(field)
        if option is None:
            yield from _fields(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field, option, value


def _check_section(section: Any) -> None:
    for key, field, option, value in _fields(section):
        if not option.takes(value):
            raise UserError(f"{key}={value}: must be {option.described(of_floats='float' in str(field.type))}")


def _check_needs(config: Config, section: Any) -> None:
    for key, field, option, value in _fields(section):
        for needed in option.needs if value != _default(field) else ():
            if not value_of(config, needed):
                raise UserError(f"{key}={value}: does nothing without {needed}; set {needed}, or leave {key} out")


def _check_method(name: str, *, of_stream: bool) -> None:
    names, others, what = (STREAM_METHODS, TASK_METHODS, "way to learn a stream") if of_stream else (TASK_METHODS, STREAM_METHODS, "method")
    if name in names:
        return
    if name not in others:
        raise UserError(f"method.name={name}: unknown {what}; {nearest(name, list(names))}")
    why = "one task, and stream.tasks lists some" if of_stream else "a stream of tasks, and stream.tasks is empty"
    raise UserError(f"method.name={name}: it learns {why}; known here: {', '.join(names)}")


def _check_data(data: DataConfig) -> None:
    """One dataset is named, so that none is left out without a word."""
    for key, value in {"data.repo_id": data.repo_id, "data.root": data.root}.items():
        if data.manifest is not None and value is not None:
            raise UserError(
                f"{key}={brief(value)}: would be left out beside data.manifest={data.manifest}; a LeRobotDataset takes data.manifest=null "
                f"data.repo_id=NAME, and data.root=FOLDER where it is here"
            )
    if data.root is not None and data.repo_id is None:
        raise UserError(f"data.root={brief(data.root)}: name the dataset too, data.repo_id=NAME (any name will do for a folder)")


def _check_compile(config: Config) -> None:
    train = config.train
    others = {
        "train.reference": train.reference,
        "train.activation_checkpointing": train.activation_checkpointing,
        "stream.tasks": bool(config.stream.tasks),
    }
    if train.compile and (chosen := [key for key, on in others.items() if on]):
        raise UserError(f"train.compile=true: cannot be combined with {' and '.join(chosen)}; leave one of them out")


def _check_stream(stream: StreamConfig) -> None:
    names = [task.name for task in stream.tasks]
    for name in names:
        if not re.fullmatch(r"\w[\w .+-]*", name):
            raise UserError(f"stream.tasks: '{name}': a name is of letters, digits, spaces and _.+-, and files are called by it")
        if names.count(name) > 1:
            raise UserError(f"stream.tasks: two are called '{name}'; results are told apart by name")
    if stream.folder:
        check_folder("stream.folder", stream.folder)
