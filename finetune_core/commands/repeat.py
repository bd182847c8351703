"""The command line that trains a run again with the same settings."""

import shlex
from pathlib import Path
from typing import Any

from finetune_core.config import RunConfig, get_setting
from finetune_core.config.changes import list_changed_settings
from finetune_core.errors import FinetuneError
from finetune_core.models.catalogue import default_image_size
from finetune_core.training.strategies.recipes import TUTORIAL


def train_command(config: RunConfig, config_file: Path) -> str:
    """Return a line for a POSIX shell that trains with exactly these settings.

    Settings that were stored for the data set in the meantime have no effect.

    Args:
        config: the settings.
        config_file: a file with the same settings. The command names the file if changes to images,
            which have no option, or an earlier run, from which other settings follow, are part of
            the settings.
    """
    return shlex.join(["thaw", "train", *train_arguments(config, config_file)])


def train_arguments(config: RunConfig, config_file: Path) -> list[str]:
    """Return the arguments of ``train``."""
    if config.edits or config.from_run or config.averaged:
        return ["--config", str(config_file)]
    # The default backbone depends on what is installed, the default size of images on the backbone.
    always = {"backbone": config.backbone} | (
        {"image_size": config.image_size} if _has_another_size(config) else {}
    )
    options = [
        *always.items(),
        *(
            (setting.name, value)
            for setting, value in list_changed_settings(config)
            if setting.name not in always
        ),
    ]
    return [
        config.data,
        "--as-is",
        "--recipe",
        TUTORIAL,  # the defaults of the config
        *(
            part
            for name, value in options
            for part in (f"--{get_setting(name).option}", _format_value(value))
        ),
    ]


def _has_another_size(config: RunConfig) -> bool:
    """Return whether the config's image size is not known to be the backbone's default."""
    try:
        return default_image_size(config.backbone) != config.image_size
    except FinetuneError:
        return True


def _format_value(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}={rate!r}" for name, rate in value.items())
    if isinstance(value, tuple):
        return ",".join(map(repr, value))
    return repr(value) if isinstance(value, float) else str(value)
