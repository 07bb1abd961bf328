"""A policy to be trained of which only the sizes count: from configuration files alone, without weights or demonstrations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

import torch

from vla_tune.data.demonstrations import adopt_shapes, check_dataset, known_features, known_metadata
from vla_tune.data.features import policy_features
from vla_tune.data.frames import megabytes
from vla_tune.data.instructions import instructions
from vla_tune.errors import UserError, one_line
from vla_tune.learners.demonstrations import Demonstrations
from vla_tune.learners.policy import PolicyLearner
from vla_tune.learners.start import Start
from vla_tune.policies import adapt, adapter_class
from vla_tune.policies.loading import new_config, policy_config, policy_vlm
from vla_tune.trust.models import check_model
from vla_tune.vlm.loading import quiet, vlm_source

if TYPE_CHECKING:
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from lerobot.policies.pretrained import PreTrainedPolicy

    from vla_tune.config import Config


@dataclass(frozen=True)
class Blueprint:
    """What a policy is made by.

    policy: lerobot's configuration, its VLM named by a folder where that has a configuration.
    base: the folder with the base VLM's configuration; None where it is not here.
    tokens: the longest instruction, in tokens.
    dataset_bytes: the pictures that are held in memory (`data.cache_mb`).
    """

    policy: PreTrainedConfig
    base: str | None
    tokens: int
    dataset_bytes: int


def blueprint(config: Config) -> Blueprint | None:
    """From what is here; None where a configuration or the shapes of the demonstrations are not.

    Raises:
        UserError: a setting is wrong, or the dataset and the policy do not fit.

    """
    meta = known_metadata(config.data)
    known = known_policy(config, meta)
    if known is None:
        return None
    policy, base = known
    if meta is not None:
        check_dataset(meta, policy, config.data.rename if config.policy.path else {})
    return Blueprint(policy, base, _tokens(policy, base, meta), _held(config, meta))


def known_policy(config: Config, meta: LeRobotDatasetMetadata | None) -> tuple[PreTrainedConfig, str | None] | None:
    """lerobot's configuration of the policy and the folder of its VLM's; None where one of what they are read from is not here.

    Args:
        meta: of the dataset, where it is here.

    Raises:
        UserError: a setting is wrong, or the policy is too narrow for the dataset.

    """
    if config.policy.path:
        folder = configuration(config.policy.path)
        if folder is None:
            return None
        policy = policy_config(folder)
        kind = adapter_class(policy.type)
        named = policy_vlm(folder, kind.vlm_name(policy))
        for key, value in config.policy.settings.items():
            setattr(policy, key, value)
        if meta is not None:
            adopt_shapes(meta, policy, config.data.rename)
        base = configuration(vlm_source(config.policy.base_vlm) if config.policy.base_vlm else named)
        own = kind.vlm_settings(configuration(named) or "")
    else:
        features = known_features(config.data) if meta is None else meta.features
        if not config.policy.base_vlm or features is None:
            return None
        kind, base = adapter_class(config.policy.type), configuration(vlm_source(config.policy.base_vlm))
        policy = new_config(kind, base or "", config.policy.settings, policy_features(features))
        own = kind.vlm_settings(base or "")
    if not all(own.values()):
        return None
    for key, value in own.items():
        setattr(policy, key, value)
    policy.device = "cpu"
    return policy, base


def configuration(name: str) -> str | None:
    """The folder that holds a model's `config.json`: itself, or a repository's in the Hub's cache; None where it is not here."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if Path(name).expanduser().is_dir():
        check_model(name)
        return name
    try:
        file = try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # the path of a folder that is not there
        return None
    if not isinstance(file, str):
        return None
    check_model(str(Path(file).parent))
    return str(Path(file).parent)


def _tokens(policy: Any, base: str | None, meta: LeRobotDatasetMetadata | None) -> int:
    """Of the longest instruction where it is known and lerobot pads no further."""
    most = int(policy.tokenizer_max_length)
    if getattr(policy, "pad_language_to", "max_length") != "longest" or meta is None:
        return most
    return min(most, max(token_counts(base, meta).values(), default=most))


def token_counts(base: str | None, meta: LeRobotDatasetMetadata) -> dict[str, int]:
    """How many tokens each instruction has; nothing where the VLM's tokenizer is not here."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base) if base else None
    except (OSError, ValueError):
        tokenizer = None
    return {text: len(tokenizer(f"{text}\n")["input_ids"]) for text in instructions(meta).values()} if tokenizer else {}


def _held(config: Config, meta: LeRobotDatasetMetadata | None) -> int:
    """The bytes of the pictures that training would hold in memory."""
    need = None if meta is None else megabytes(meta, int(meta.total_frames))
    return round(need * 1e6) if need is not None and need <= config.data.cache_mb else 0


class Planned(Demonstrations):
    """To be made and used inside `vla_tune.vlm.shapes.without_values`.

    Raises:
        UserError: lerobot cannot make such a policy.

    """

    def __init__(self, config: Config, made_by: Blueprint) -> None:
        policy = _made(made_by.policy)
        policy.float()
        self.start = Start(policy, cast("Any", None), cast("Any", None), made_by.base or "")
        PolicyLearner.__init__(self, policy)
        self.config, self.tasks, self.base, self._tokens = config, [config.name], made_by.base or "", made_by.tokens
        self.adapter.freeze_as_configured()
        self.dtype = self.adapter.compute_dtype(config.train.precision)
        self.adapter.prepare_forward(self.dtype, checkpointing=config.train.activation_checkpointing)

    def batches(self, task: int, step: int) -> Iterator[dict[str, Any]]:
        while True:
            yield self.batch(self.config.train.batch_size)

    def batch(self, size: int) -> dict[str, Any]:
        """A batch as the policy's forward pass takes it."""
        config: Any = self.model.config
        text = "observation.language"
        batch = {key: torch.zeros(size, *feature.shape) for key, feature in config.input_features.items()}
        ((action, feature),) = config.output_features.items()
        return {
            **batch,
            action: torch.zeros(size, config.chunk_size, *feature.shape),
            f"{action}_is_pad": torch.zeros(size, config.chunk_size, dtype=torch.bool),
            f"{text}.tokens": torch.zeros(size, self._tokens, dtype=torch.long),
            f"{text}.attention_mask": torch.ones(size, self._tokens, dtype=torch.bool),
        }


def _made(config: PreTrainedConfig) -> PreTrainedPolicy:
    """lerobot's policy, its VLM as lerobot loads it from the policy's own file."""
    kind = adapter_class(config.type)
    before = {key: getattr(config, key) for key in kind.without_weights}
    try:
        for key, value in kind.without_weights.items():
            setattr(config, key, value)
        with quiet(), _any_processor():
            policy = kind.policy_class()(config)
    except (OSError, TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"policy.settings: lerobot cannot make this {kind.policy_type} policy ({one_line(error)})") from None
    for key, value in before.items():
        setattr(config, key, value)
    adapt(policy).obey_settings()
    return policy


@contextmanager
def _any_processor() -> Iterator[None]:
    """A VLM's folder may lack its tokenizer in here, of which a forward pass needs the numbers of two tokens."""
    from transformers import AutoProcessor

    real = AutoProcessor.from_pretrained

    def opened(source: str, **settings: Any) -> Any:
        with contextlib.suppress(OSError, ValueError):
            return real(source, **settings)
        return SimpleNamespace(tokenizer=SimpleNamespace(fake_image_token_id=0, global_image_token_id=0, bos_token_id=None))

    with patch.object(AutoProcessor, "from_pretrained", opened):
        yield
