"""Fine-tune vision-language-action models without destroying the vision-language model inside them."""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers know it; `typing` would be imported before Ctrl-C is seen to
if TYPE_CHECKING:
    from typing import Any

    from vla_tune.library import load_anchor, make_method

__all__ = ["load_anchor", "make_method"]


def __getattr__(name: str) -> Any:
    """The library's two entry points, imported when asked for: the package itself imports neither torch nor lerobot."""
    if name in __all__:
        from vla_tune import library

        return getattr(library, name)
    raise AttributeError(f"module 'vla_tune' has no attribute '{name}'")
