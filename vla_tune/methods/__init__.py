"""Methods, one a file: what trains, which losses a step has, and what becomes of their gradients."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from vla_tune.errors import UserError, nearest
from vla_tune.methods.options import STREAM_METHODS, TASK_METHODS

if TYPE_CHECKING:
    from vla_tune.methods.base import Method

STREAM_FILES = {"lora": "sequential_lora"}
"""Where a method of a stream is another than plain training's of the same name."""


def method_class(name: str, *, of_stream: bool = False) -> type[Method]:
    """The class of a method's name, for plain training or for a stream.

    Raises:
        UserError: unknown method.

    """
    from vla_tune.methods.base import Method

    names = STREAM_METHODS if of_stream else TASK_METHODS
    if name not in names:
        raise UserError(f"method.name={name}: unknown method; {nearest(name, list(names))}")
    file = STREAM_FILES.get(name, name) if of_stream else name
    found = vars(import_module(f"vla_tune.methods.{file}")).values()
    return next(one for one in found if isinstance(one, type) and issubclass(one, Method) and vars(one).get("name") == name)
