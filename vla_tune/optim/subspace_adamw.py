"""AdamW with the subspace projection, as an optimizer of lerobot's: `--optimizer.type=subspace_adamw`."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from lerobot.optim.optimizers import AdamWConfig, OptimizerConfig
from torch import nn

from vla_tune.anchors.artifact import check_compatible, load_anchor
from vla_tune.anchors.protection import Protection
from vla_tune.config import Config, PolicyConfig
from vla_tune.errors import UserError
from vla_tune.policies import adapt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vla_tune.anchors.artifact import Anchor


@OptimizerConfig.register_subclass("subspace_adamw")
@dataclass
class SubspaceAdamWConfig(AdamWConfig):  # type: ignore[misc]
    """lerobot's `adamw`, under which the VLM may change only where its answers do not depend on it.

    anchor: the anchor artifact, of the VLM that the policy starts from.
    sides, energy: as those of `method.subspace`.
    """

    anchor: str = field(kw_only=True)
    sides: str = "both"
    energy: float = 0.99

    def build(self, params: Iterable[nn.Parameter]) -> torch.optim.AdamW:
        """AdamW over a policy's `parameters()`, all of them, that projects on both sides of each step.

        Raises:
            UserError: these are not the parameters of a policy with a trainable VLM that the anchor fits.

        """
        if self.sides not in ("both", "inputs"):
            raise UserError(f"--optimizer.sides={self.sides}: expected both or inputs")
        if not 0 < self.energy <= 1:
            raise UserError(f"--optimizer.energy={self.energy}: must be above 0 and at most 1")
        parameters = list(params)
        anchor = load_anchor(self.anchor)
        # Changes are counted from the weights that the anchor was taken from, not from what a resumed run begins with.
        vlm = anchored_vlm(anchor)
        named = find_vlm(vlm, parameters)
        if not any(parameter.requires_grad for parameter in named.values()):
            raise UserError(
                "subspace_adamw protects the VLM, but the policy freezes all of it (train_expert_only is true, lerobot's default); "
                "set --policy.train_expert_only=false, or use --optimizer.type=adamw"
            )
        protection = Protection(anchor, self.sides, self.energy, vlm, named)
        logging.info(protection)
        known = [id(parameter) for parameter in parameters]

        def before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            if [id(parameter) for group in optimizer.param_groups for parameter in group["params"]] != known:
                raise UserError("subspace_adamw: the optimizer's parameters were replaced (by FSDP?); train with DDP or one process")
            protection.project_gradients()

        optimizer = torch.optim.AdamW(parameters, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)
        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(lambda *_: protection.project_changes())
        return optimizer


def anchored_vlm(anchor: Anchor) -> PreTrainedModel:
    """The VLM that an anchor was taken from, opened again."""
    from vla_tune.policies.starting import starting_policy
    from vla_tune.policies.weights import weights_digest

    config = Config(name="anchor", policy=PolicyConfig(**anchor.artifact.config["policy"]))
    with torch.random.fork_rng(devices=[]):  # a new action expert draws its weights; the loop's noise stays what it was
        adapter = adapt(starting_policy(config)[0])
    check_compatible(anchor, layers=len(adapter.layers()), width=adapter.width, backbone=weights_digest(adapter.vlm.state_dict()))
    return adapter.vlm


def find_vlm(vlm: nn.Module, parameters: list[nn.Parameter]) -> dict[str, nn.Parameter]:
    """Those of a policy's parameters that are its VLM's, by their names in the VLM.

    lerobot gives optimizers no names: the VLM is the one stretch with the shapes of `vlm` in the order of `vlm`.

    Raises:
        UserError: there is no such stretch.

    """
    names, shapes = zip(*((name, parameter.shape) for name, parameter in vlm.named_parameters()), strict=True)
    everything = [parameter.shape for parameter in parameters]
    places = [at for at in range(len(everything)) if tuple(everything[at : at + len(shapes)]) == shapes]
    if len(places) != 1:
        raise UserError(
            f"subspace_adamw: {len(places)} stretches of these {len(parameters)} parameters have the shapes of the anchor's VLM, not one; "
            "is it another VLM, cut at another layer, wrapped by PEFT, or not all of the policy's parameters()?"
        )
    return dict(zip(names, parameters[places[0] :], strict=False))
