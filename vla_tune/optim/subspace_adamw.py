"""AdamW with the subspace projection, as an optimizer of lerobot's: `--optimizer.type=subspace_adamw`."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lerobot.optim.optimizers import AdamWConfig, OptimizerConfig
from torch import nn

from vla_tune.anchors.artifact import check_compatible, load_anchor
from vla_tune.anchors.protection import Protection
from vla_tune.config import Config, PolicyConfig
from vla_tune.errors import UserError
from vla_tune.optim.masters import Masters
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
        refuse_sharding()
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
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)
        optimizer.register_step_pre_hook(partial(refuse_others, {id(parameter) for parameter in parameters}))
        masters = Masters(optimizer)
        if masters.parameters:
            logging.info(told_of(masters.parameters))

        def before(*_: Any) -> None:
            protection.project_gradients()

        def after(*_: Any) -> None:
            protection.project_changes()
            masters.after_step()

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
        return optimizer


def told_of(parameters: list[nn.Parameter]) -> str:
    """The line about weights that are in a lower precision."""
    types = ", ".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters}))
    size = sum(parameter.numel() for parameter in parameters)
    return (
        f"subspace_adamw: {size:,} of the policy's weights that train are in {types}, which would round most steps away; "
        f"float32 masters of them are trained ({4 * size / 1e6:.1f} MB, beside AdamW's moments in float32) and rounded into them"
    )


def refuse_sharding() -> None:
    """Stop where lerobot's program has set up FSDP, DeepSpeed or Megatron.

    Raises:
        UserError: it has; weights and gradients are then in pieces, which cannot be projected.

    """
    from accelerate.state import AcceleratorState, is_initialized
    from accelerate.utils import DistributedType

    split = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
    if is_initialized() and (kind := AcceleratorState().distributed_type) in split:
        raise UserError(f"subspace_adamw projects whole weights, which {kind.value} splits; train with DDP or one process")


def refuse_others(known: set[int], optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Stop before a step of an optimizer that was given other parameters."""
    if {id(parameter) for group in optimizer.param_groups for parameter in group["params"]} != known:
        raise UserError("subspace_adamw: the optimizer's parameters were replaced (by FSDP?); train with DDP or one process")


def anchored_vlm(anchor: Anchor) -> PreTrainedModel:
    """The VLM that an anchor was taken from, opened again."""
    from vla_tune.policies.starting import starting_policy
    from vla_tune.policies.weights import weights_digest

    config = Config(name="anchor", device="cpu", policy=PolicyConfig(**anchor.artifact.config["policy"]))
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
