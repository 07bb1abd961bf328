"""From a name in the configuration to the class in the module that is called after it."""

from __future__ import annotations

from importlib import import_module


def class_named[T](package: str, name: str, kind: type[T], file: str = "") -> type[T]:
    """The subclass of `kind` in `package.file` (by default the file is called like it) whose own `name` this is."""
    found = vars(import_module(f"{package}.{file or name}")).values()
    return next(one for one in found if isinstance(one, type) and issubclass(one, kind) and vars(one).get("name") == name)
