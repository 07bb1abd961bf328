"""The Python packages that the user lets a policy folder name: `policy.trust`."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

from vla_tune.errors import UserError, brief, one_line

_trusted: set[str] = set()


def trust(packages: Iterable[str]) -> None:
    """Let policies bring processor steps of these packages, in this process."""
    _trusted.clear()
    _trusted.update(packages)


def is_of_trusted(step: dict[str, Any]) -> bool:
    """Whether a step of a saved processor is a class of a trusted package, by its dotted path or its registered name.

    Raises:
        UserError: a trusted package cannot be imported.

    """
    if not _trusted:
        return False
    from lerobot.processor.pipeline import ProcessorStep, ProcessorStepRegistry

    for package in _trusted:
        try:
            import_module(package)
        except Exception as error:  # whatever the user's own package raises
            raise UserError(f"policy.trust: '{package}' cannot be imported ({one_line(error)})") from None
    try:
        if "registry_name" in step:
            found = ProcessorStepRegistry.get(step["registry_name"])
        else:
            module, _, name = str(step.get("class")).rpartition(".")
            if module.partition(".")[0] not in _trusted:
                return False
            found = getattr(import_module(module), name)
    except Exception:  # a class that is not there, or a module that fails
        return False
    return isinstance(found, type) and issubclass(found, ProcessorStep) and found.__module__.partition(".")[0] in _trusted


def check_packages(packages: Iterable[str]) -> None:
    """Check names of `policy.trust`.

    Raises:
        UserError: one is no package's.

    """
    for name in packages:
        if not name.isidentifier():
            raise UserError(f"policy.trust: '{brief(name)}' is no package's name; write what Python imports, without dots")
