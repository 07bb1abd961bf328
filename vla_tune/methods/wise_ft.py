"""WiSE-FT (arXiv 2109.01903): the weights half-way between the VLM as it was and as fine-tuning left it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from vla_tune.artifacts.folder import Artifact, read_artifact
from vla_tune.errors import UserError
from vla_tune.methods.base import Method

if TYPE_CHECKING:
    from vla_tune.config import MethodConfig


class WiSEFT(Method):
    """A finished run's policy whose VLM is base + alpha * (tuned - base); the policy that it is given holds the base."""

    name: ClassVar[str] = "wise_ft"
    trains: ClassVar[bool] = False

    def prepare(self) -> None:
        from vla_tune.policies.loading import load_policy

        device = str(self.adapter.policy.config.device)
        tuned = load_policy(str(finished_run(self.settings).path / "policy"), device=device).state_dict()
        with torch.no_grad():
            for group, parameters in self.adapter.groups().items():
                for name, parameter in parameters.items():
                    alpha = self.settings.wise_ft.alpha if group.startswith("vlm.") else 1.0
                    parameter.copy_(torch.lerp(parameter, tuned[name], alpha))
        self.model.requires_grad_(requires_grad=False)


def finished_run(settings: MethodConfig) -> Artifact:
    """The train artifact that `method.wise_ft.path` names, verified.

    Raises:
        UserError: there is no path, or the artifact is missing, unfinished or damaged.

    """
    path = settings.wise_ft.path
    if path is None:
        raise UserError("method 'wise_ft' trains nothing itself; set method.wise_ft.path to the train artifact (RUN/train) to interpolate")
    return read_artifact(Path(path), "train", f"vla-tune train PIPELINE --out {Path(path).parent}")
