"""The anchor: what the VLM's layers look like on VQA questions before anything is trained."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import nn

from vla_tune.artifacts import Artifact, Draft
from vla_tune.config import Config
from vla_tune.console import say
from vla_tune.errors import UserError
from vla_tune.policies import adapt
from vla_tune.policies.loading import check_device, grafted_vlm, load_policy, load_vlm, new_policy, vlm_source
from vla_tune.policies.weights import weights_digest
from vla_tune.vqa.dataset import vqa_questions
from vla_tune.vqa.statistics import STOCK, policy_moments, stock_moments, tensors_of

if TYPE_CHECKING:
    from lerobot.configs import PolicyFeature
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

FILE = "anchor.safetensors"


def run(config: Config, run: Path, *, overwrite: bool = False) -> Artifact:
    """Take the statistics of the starting policy's VLM over `anchor.samples` questions and write `RUN/anchor`."""
    with Draft(run / "anchor", "anchor", overwrite=overwrite) as draft:
        return _take(config, draft)


def _take(config: Config, draft: Draft) -> Artifact:
    began = time.perf_counter()
    questions = vqa_questions(config.vqa.manifest, "anchor", config.anchor.samples)
    policy, base = starting_policy(config)
    adapter = adapt(policy)
    vlm, processor = grafted_vlm(policy, base)
    moments = policy_moments(adapter, questions, config.anchor.batch_size)
    nn.Module.to(vlm, config.device)
    stock = stock_moments(vlm, processor, questions, config.anchor.batch_size, "anchor, Hugging Face path")
    identity = {
        "layers": len(moments),
        "stock_layers": len(stock),
        "width": adapter.width,
        "backbone": weights_digest(adapter.vlm.state_dict()),
        "base": weights_digest(load_vlm(base)[0].state_dict()),
    }
    tensors = {**tensors_of(moments), **tensors_of(stock, STOCK)}
    save_file(tensors, draft.path / FILE, metadata={name: str(value) for name, value in identity.items()})
    metrics = {
        "samples": len(questions),
        "tokens": moments[0].count,
        "stock_tokens": stock[0].count,
        "seconds": round(time.perf_counter() - began, 2),
        **identity,
    }
    say(f"anchor: {len(moments)} layers of {adapter.width}, {moments[0].count} tokens of {len(questions)} questions")
    return draft.publish(config=config.to_dict(), inputs=[], metrics=metrics, device=config.device)


def starting_policy(config: Config) -> tuple[SmolVLAPolicy, str]:
    """The policy that training starts from, in evaluation mode, and its base VLM (Hub id or folder).

    Without `policy.path` it is a new action expert on the base VLM. Its features matter to the expert alone, and no
    token of the prefix attends to that.
    """
    named = config.policy.base_vlm
    check_device(config.device)
    if config.policy.path is not None:
        policy = load_policy(config.policy.path, device=config.device)
        return policy.eval(), vlm_source(named or policy.config.vlm_model_name)
    if named is None:
        raise UserError(
            "policy.path or policy.base_vlm must be set: there is no VLM to take an anchor of (`demo` is the one that is shipped)"
        )
    policy = new_policy(vlm_source(named), {**config.policy.settings, "device": config.device}, _any_features())
    return policy.to(config.device).eval(), vlm_source(named)


def _any_features() -> tuple[dict[str, PolicyFeature], dict[str, PolicyFeature]]:
    from lerobot.configs import FeatureType, PolicyFeature

    inputs = {
        "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
        "observation.state": PolicyFeature(FeatureType.STATE, (1,)),
    }
    return inputs, {"action": PolicyFeature(FeatureType.ACTION, (1,))}
