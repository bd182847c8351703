"""A run's settings as the command that trains it again."""

import shlex
from pathlib import Path
from typing import Any

from finetune_core.config import RunConfig, setting_of
from finetune_core.config.changes import changed_settings


def train_command(config: RunConfig, config_file: Path) -> str:
    """A line for a POSIX shell that trains with exactly these settings, also when others were set for the data set since.

    Args:
        config_file: a file with the same settings: changes to single images have no option, and from an earlier run other settings
            follow, so with these it is named instead.
    """
    return shlex.join(["thaw", "train", *train_arguments(config, config_file)])


def train_arguments(config: RunConfig, config_file: Path) -> list[str]:
    """The arguments of ``train``."""
    if config.edits or config.from_run:
        return ["--config", str(config_file)]
    # The default backbone depends on what is installed.
    options = [("backbone", config.backbone)] + [
        (one.name, value) for one, value in changed_settings(config) if one.name != "backbone"
    ]
    return [
        config.data,
        "--as-is",
        *(part for name, value in options for part in (f"--{setting_of(name).option}", _text(value))),
    ]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}={rate!r}" for name, rate in value.items())
    return repr(value) if isinstance(value, float) else str(value)
