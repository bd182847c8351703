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
    auto_setting_names,
    get_setting,
    setting_names,
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
    "auto_setting_names",
    "config_bytes",
    "get_setting",
    "make_config",
    "read_config",
    "setting_names",
]
