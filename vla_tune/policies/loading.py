"""Opening and saving policies by their libraries' own loaders, with messages that say how to mend a failure."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vla_tune.errors import UserError, nearest, one_line
from vla_tune.policies import adapt, adapter_class
from vla_tune.policies.devices import check_device
from vla_tune.trust.models import check_model
from vla_tune.trust.policies import check_policy, policy_type
from vla_tune.vlm.loading import load_vlm, quiet
from vla_tune.vlm.parts import decoder_of

if TYPE_CHECKING:
    from lerobot.configs import PolicyFeature
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.pretrained import PreTrainedPolicy
    from lerobot.processor import PolicyProcessorPipeline
    from transformers import PreTrainedModel, ProcessorMixin

    from vla_tune.policies.base import PolicyAdapter


def new_policy(
    kind: type[PolicyAdapter], base_vlm: str, settings: dict[str, Any], features: tuple[dict[str, PolicyFeature], dict[str, PolicyFeature]]
) -> PreTrainedPolicy:
    """A policy with a new action expert on `base_vlm`.

    Args:
        kind: the adapter of the policy's type.
        settings: fields of lerobot's configuration of that type.
        features: lerobot's input and output features.

    Raises:
        UserError: lerobot has no such setting or cannot make such a policy, or the VLM is another architecture.

    """
    config, policy_class = new_config(kind, base_vlm, settings, features), kind.policy_class()
    vlm, _ = load_vlm(base_vlm)
    try:
        with quiet():
            policy = policy_class(config)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"policy.settings: lerobot cannot make this {kind.policy_type} policy ({one_line(error)})") from None
    try:
        kind(policy).put_vlm(vlm.state_dict())
    except (KeyError, RuntimeError) as error:
        raise UserError(f"the VLM '{base_vlm}' does not fit into a {kind.policy_type} policy ({one_line(error)})") from None
    return policy


def new_config(
    kind: type[PolicyAdapter], base_vlm: str, settings: dict[str, Any], features: tuple[dict[str, PolicyFeature], dict[str, PolicyFeature]]
) -> PreTrainedConfig:
    """lerobot's configuration of the policy that `new_policy` makes of the same; it needs no weights.

    Raises:
        UserError: lerobot has no such setting, or cannot take its value.

    """
    fixed = {**kind.vlm_settings(base_vlm), **kind.without_weights}
    config_class = kind.policy_class().config_class
    known = [f.name for f in dataclasses.fields(config_class)]
    for key in settings:
        if key not in known:
            raise UserError(f"policy.settings.{key}: lerobot's {config_class.__name__} has no such field; {nearest(key, known)}")
        if key in (*fixed, "input_features", "output_features"):
            raise UserError(f"policy.settings.{key}: follows from policy.base_vlm and the dataset; leave it out")
    inputs, outputs = features
    try:
        return config_class(
            **{"device": "cpu", "push_to_hub": False, **settings, **fixed, "input_features": inputs, "output_features": outputs}
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"policy.settings: {one_line(error)}") from None


def set_action_steps(config: Any, count: int) -> None:
    """How many actions of each chunk a policy of this configuration takes before it looks again."""
    if count > config.chunk_size:
        raise UserError(f"rollout.n_action_steps={count} is more than the policy's chunk_size={config.chunk_size}")
    config.n_action_steps = count


def load_policy(path: str, *, n_action_steps: int | None = None, device: str = "cpu") -> PreTrainedPolicy:
    """Any lerobot policy with an adapter, from a folder or the Hub, by lerobot's own strict loader; nothing is cast.

    Raises:
        UserError: it cannot be opened, or has no adapter.

    """
    from safetensors import SafetensorError

    check_device(device)
    config = policy_config(path)
    kind = adapter_class(config.type)
    vlm = policy_vlm(path, kind.vlm_name(config))
    named = kind.vlm_settings(vlm)
    if named:
        check_model(vlm)
    for key, value in named.items():
        setattr(config, key, value)
    config.device = device
    if n_action_steps is not None:
        set_action_steps(config, n_action_steps)
    try:
        with quiet():
            return kind.load(path, config)
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"the policy '{path}' cannot be loaded ({one_line(error)}); it needs its VLM '{vlm}'") from None


def policy_config(path: str) -> PreTrainedConfig:
    """lerobot's configuration of a policy folder or of a policy on the Hub.

    Raises:
        UserError: it cannot be opened.

    """
    import lerobot.policies  # noqa: F401 - registers the types of policies
    from lerobot.configs.policies import PreTrainedConfig

    folder = Path(path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not a lerobot policy folder: it has no config.json")
    if kind := policy_type(path):
        adapter_class(kind)  # no configuration of another type is made
    check_policy(path, fetch=False)
    try:
        with quiet():
            config = PreTrainedConfig.from_pretrained(path)
    except Exception as error:  # draccus and the Hub raise many kinds
        raise UserError(f"the policy '{path}' cannot be opened ({one_line(error)}); check its path") from None
    check_model(policy_vlm(path, adapter_class(config.type).vlm_name(config)), fetch=False)
    return config


def policy_vlm(path: str, named: str) -> str:
    """The VLM folder or Hub id to open a policy with: the `vlm/` beside its folder, else what it names."""
    beside = Path(path).resolve().parent / "vlm"
    return str(beside) if beside.is_dir() and Path(path).is_dir() else named


def load_processors(
    policy: PreTrainedPolicy,
    path: str | None = None,
    stats: dict[str, dict[str, Tensor]] | None = None,
    rename: dict[str, str] | None = None,
) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
    """lerobot's pre- and post-processor: those saved with the policy at `path`, or new ones from dataset statistics.

    Args:
        rename: names of observations, each with the policy's; default: what was saved.
    """
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.processor.rename_processor import rename_stats

    config = policy.config
    kind = adapter_class(config.type)
    tokenizer_name = kind.vlm_name(config)
    if path is None:
        check_model(tokenizer_name)
        return make_pre_post_processors(config, dataset_stats=stats)
    own = bool(kind.vlm_settings(""))
    check_policy(path, fetch=not own)
    device = {"device_processor": {"device": str(config.device)}}
    tokenizer = {"max_length": config.tokenizer_max_length}
    if own:
        check_model(tokenizer_name)
        tokenizer["tokenizer_name"] = tokenizer_name
    overrides: dict[str, Any] = {"tokenizer_processor": tokenizer, **device}
    if rename:
        overrides["rename_observations_processor"] = {"rename_map": rename}
    if stats is not None:
        stats = rename_stats(stats, rename or {})
        overrides["normalizer_processor"] = {
            "stats": stats,
            "features": {**config.input_features, **config.output_features},
            "norm_map": config.normalization_mapping,
        }
    post: dict[str, Any] = {}
    if stats is not None:
        post["unnormalizer_processor"] = {"stats": stats, "features": config.output_features, "norm_map": config.normalization_mapping}
    try:
        return make_pre_post_processors(config, pretrained_path=path, preprocessor_overrides=overrides, postprocessor_overrides=post)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"the processors of policy '{path}' cannot be opened ({one_line(error)})") from None


def renamed(processor: PolicyProcessorPipeline) -> dict[str, str]:
    """The names of observations that a preprocessor changes, each with the policy's."""
    return {old: new for step in processor.steps for old, new in getattr(step, "rename_map", {}).items()}


def grafted_vlm(policy: PreTrainedPolicy, base: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The policy's VLM at full depth: its tensors in place of the base VLM's, whose upper layers stay where it cut them.

    A table of tokens that the policy has cut short takes the place of as many rows.

    Raises:
        UserError: the policy's VLM does not fit the base VLM.

    """
    vlm, processor = load_vlm(base)
    tuned = adapt(policy).vlm.state_dict()
    whole = vlm.state_dict()
    misfits = [name for name, tensor in tuned.items() if name not in whole or whole[name][: len(tensor)].shape != tensor.shape]
    if misfits:
        raise UserError(f"the policy's VLM does not fit the base VLM '{base}' (first difference: {misfits[0]}); set policy.base_vlm")
    with torch.no_grad():
        for name, tensor in tuned.items():
            whole[name][: len(tensor)] = tensor
    return vlm, processor


def vlm_is_whole(policy: PreTrainedPolicy) -> bool:
    """Whether a policy has all decoder blocks of its VLM; lerobot can leave out the upper ones."""
    vlm = adapt(policy).vlm
    layers: Any = decoder_of(vlm).layers
    return len(layers) == vlm.config.get_text_config().num_hidden_layers


def whole_vlm(policy: PreTrainedPolicy, base: str) -> PreTrainedModel:
    """The policy's own VLM, which can answer; where the policy has cut it, with the base VLM's upper layers on top.

    Its modules are the policy's, so that what is put on them or trained in them is met here too.

    Raises:
        UserError: the policy's VLM does not fit the base VLM.

    """
    own = adapt(policy).vlm
    layers: Any = decoder_of(own).layers
    if vlm_is_whole(policy):
        return own
    whole = grafted_vlm(policy, base)[0].to(next(own.parameters()))  # type: ignore[arg-type]
    upper: Any = decoder_of(whole).layers
    for source, target in ((own, whole), (own.model, whole.model), (decoder_of(own), decoder_of(whole))):
        for name, module in source.named_children():
            if module is not own.model and module is not decoder_of(own) and module is not layers:
                setattr(target, name, module)
    decoder_of(whole).layers = nn.ModuleList([*layers, *upper[len(layers) :]])
    return whole


def save_policy(
    policy: PreTrainedPolicy, processors: tuple[PolicyProcessorPipeline, PolicyProcessorPipeline], folder: Path, vlm: str
) -> None:
    """A stock lerobot policy directory that names `vlm` (a Hub id or a final folder) as its VLM and tokenizer, where it names any."""
    adapter, config = adapt(policy), policy.config
    named = adapter.vlm_settings(vlm)
    settings = {**named, **adapter.without_weights, "pretrained_path": None}
    before = {key: getattr(config, key) for key in settings}
    tokenizers = [step for step in processors[0].steps if hasattr(step, "tokenizer_name")] if named else []
    names = [step.tokenizer_name for step in tokenizers]
    try:
        for key, value in settings.items():
            setattr(config, key, value)
        for step in tokenizers:
            step.tokenizer_name = vlm
        with adapter.as_stock():
            policy.save_pretrained(folder)
        for processor in processors:
            processor.save_pretrained(folder)
    finally:
        for key, value in before.items():
            setattr(config, key, value)
        for step, name in zip(tokenizers, names, strict=True):
            step.tokenizer_name = name
