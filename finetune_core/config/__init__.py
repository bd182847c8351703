"""The settings of a run, declared once, and the functions that read them from outside."""

from finetune_core.config.edit import Edit
from finetune_core.config.make import CONFIG_FILE, config_bytes, make_config, read_config
from finetune_core.config.run_config import (
    Augmentation,
    EarlyStoppingMetric,
    NearDuplicates,
    Optimizer,
    RunConfig,
    all_settings,
    following_names,
    names_in,
    setting_of,
)

__all__ = [
    "CONFIG_FILE",
    "Augmentation",
    "EarlyStoppingMetric",
    "Edit",
    "NearDuplicates",
    "Optimizer",
    "RunConfig",
    "all_settings",
    "config_bytes",
    "following_names",
    "make_config",
    "names_in",
    "read_config",
    "setting_of",
]
