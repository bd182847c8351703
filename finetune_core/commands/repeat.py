"""A run's settings as the command that trains it again."""

import shlex
from pathlib import Path
from typing import Any

from finetune_core.config import RunConfig, setting_of
from finetune_core.config.changes import changed_settings
from finetune_core.errors import FinetuneError
from finetune_core.models.catalogue import usual_image_size
from finetune_core.training.recipes import TUTORIAL


def train_command(config: RunConfig, config_file: Path) -> str:
    """A line for a POSIX shell that trains with exactly these settings, also when others were set for the data set since.

    Args:
        config_file: a file with the same settings: changes to single images have no option, and from an earlier run other settings
            follow, so with these it is named instead.
    """
    return shlex.join(["thaw", "train", *train_arguments(config, config_file)])


def train_arguments(config: RunConfig, config_file: Path) -> list[str]:
    """The arguments of ``train``."""
    if config.edits or config.from_run or config.averaged:
        return ["--config", str(config_file)]
    # The default backbone depends on what is installed, the default size of images on the backbone.
    always = {"backbone": config.backbone} | (
        {"image_size": config.image_size} if _has_another_size(config) else {}
    )
    options = [
        *always.items(),
        *((one.name, value) for one, value in changed_settings(config) if one.name not in always),
    ]
    return [
        config.data,
        "--as-is",
        "--recipe",
        TUTORIAL,  # whose values are the defaults of the config
        *(
            part
            for name, value in options
            for part in (f"--{setting_of(name).option}", _text(value))
        ),
    ]


def _has_another_size(config: RunConfig) -> bool:
    """Whether the backbone's own size of image is not the config's; also where it is not known."""
    try:
        return usual_image_size(config.backbone) != config.image_size
    except FinetuneError:
        return True


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}={rate!r}" for name, rate in value.items())
    if isinstance(value, tuple):
        return ",".join(map(repr, value))
    return repr(value) if isinstance(value, float) else str(value)
