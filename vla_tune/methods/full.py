"""Plain fine-tuning: what lerobot does with a trainable VLM, and what forgets."""

from __future__ import annotations

from typing import Any, ClassVar

from vla_tune.methods.base import Method


class Full(Method):
    """The task gradient as it is. lerobot's own freezing (last block, final norm, head) stays."""

    name: ClassVar[str] = "full"

    def prepare(self) -> None:
        self.require_trainable_vlm()

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """One group; two where the VLM has a learning rate of its own, the VLM's last: the log shows the first one's."""
        scale = self.settings.full.vlm_lr
        if scale == 1:
            return super().parameter_groups(lr)
        vlm = list(self.trained("vlm").values())
        inside = {id(parameter) for parameter in vlm}
        rest = [parameter for parameter in self.policy.get_optim_params() if id(parameter) not in inside]
        return [{"params": rest}, {"params": vlm, "lr": lr * scale}]
