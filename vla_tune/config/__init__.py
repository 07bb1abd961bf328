"""The configuration of a run: its schema, how it is read and checked, and how two of them are compared. Imports no torch."""

from vla_tune.config.check import walk
from vla_tune.config.compare import completed, departures, differences
from vla_tune.config.load import find_file, load_config, structured
from vla_tune.config.reading import read_yaml
from vla_tune.config.schema import AnchorConfig, Config, DataConfig, PolicyConfig, RolloutConfig, StreamTask
from vla_tune.config.values import option_of, own_options, protects, value_of
from vla_tune.methods.options import STREAM_METHODS as STRATEGIES
from vla_tune.methods.options import TASK_METHODS as METHODS
from vla_tune.methods.options import (
    AegisConfig,
    AGEMConfig,
    CotrainingConfig,
    DistillationConfig,
    EWCConfig,
    FullConfig,
    InsulatedConfig,
    L2SPConfig,
    LoRAConfig,
    MethodConfig,
    PenaltyConfig,
    WarmupConfig,
    WiSEFTConfig,
)

__all__ = [
    "METHODS",
    "STRATEGIES",
    "AGEMConfig",
    "AegisConfig",
    "AnchorConfig",
    "Config",
    "CotrainingConfig",
    "DataConfig",
    "DistillationConfig",
    "EWCConfig",
    "FullConfig",
    "InsulatedConfig",
    "L2SPConfig",
    "LoRAConfig",
    "MethodConfig",
    "PenaltyConfig",
    "PolicyConfig",
    "RolloutConfig",
    "StreamTask",
    "WarmupConfig",
    "WiSEFTConfig",
    "completed",
    "departures",
    "differences",
    "find_file",
    "load_config",
    "option_of",
    "own_options",
    "protects",
    "read_yaml",
    "structured",
    "value_of",
    "walk",
]
