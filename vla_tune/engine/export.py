"""What a finished run leaves: a stock lerobot policy, and the tuned VLM as a stock Hugging Face checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vla_tune.policies.loading import grafted_vlm, save_policy
from vla_tune.vlm.loading import save_vlm

if TYPE_CHECKING:
    from vla_tune.engine.setup import Start
    from vla_tune.methods.base import Method


def export(method: Method, start: Start, folder: Path, final: Path) -> None:
    """Write `policy/` and `vlm/` into `folder`, which will be renamed to `final`.

    The policy names its VLM by Hub id only where lerobot would then build it in the types that were trained.
    """
    method.finish(folder)
    vlm, processor = grafted_vlm(start.policy, start.base_vlm)
    save_vlm(vlm, processor, folder / "vlm")
    by_id = not Path(start.base_vlm).is_dir() and method.adapter.keeps_types(start.base_vlm)
    save_policy(start.policy, start.processors, folder / "policy", start.base_vlm if by_id else str(final.resolve() / "vlm"))
