"""Runs as the commands need them: one that somebody names, and the weights that others begin with."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

from rich.markup import escape

from finetune_core.commands.terminal import err, progress_bar, show_work
from finetune_core.config import RunConfig
from finetune_core.errors import ConfigError, RunError
from finetune_core.models.catalogue import check_backbone_name, usual_image_size
from finetune_core.models.weights import PRETRAINED, fetch_description
from finetune_core.runs.store import Run, read_run, run_folder
from finetune_core.training.prepare import check_config, fetch_weights, missing_weights
from finetune_core.work import in_phase


def open_run(named: str | os.PathLike[str]) -> Run:
    """A run that a person names by its folder, or by its id; what of it could not be read is reported on stderr.

    Raises:
        RunError: when it is none, or damaged.
    """
    run = read_run(run_folder(named))
    for notice in run.notices:
        err.print(escape(notice))
    return run


def settings_from_run(
    named: Run | str | os.PathLike[str], backbones: Sequence[str] = ()
) -> dict[str, Any]:
    """The settings that follow from the run that another one starts from: that run, its backbone, and how images become its input.

    Args:
        backbones: those that were asked for.

    Raises:
        ConfigError: when there is no such run, it is going on, or another backbone was asked for.
    """
    try:
        run = open_run(named.run_dir if isinstance(named, Run) else named)
    except RunError as error:
        raise ConfigError({"from_run": str(error)}) from None
    if run.active:
        raise ConfigError(
            {"from_run": f"the run {run.run_id} is going on: wait until it ends, or stop it"}
        )
    own = run.config.backbone
    if others := [name for name in backbones if name != own]:
        raise ConfigError(
            {
                "backbone": f"follows from the run to start from: {run.run_id} has {own}, not "
                f"{', '.join(others)}; leave it out"
            }
        )
    return {
        "from_run": str(run.run_dir),
        "weights": PRETRAINED,
        "backbone": own,
    } | run.config.input_settings


def with_weights(configs: Sequence[RunConfig], *, elsewhere: bool = False) -> None:
    """Download the pretrained weights that runs begin with, before any of them is made.

    Args:
        elsewhere: they may train on other machines, with other devices.

    Raises:
        ConfigError: when one cannot work at all.
        WeightsError: when they cannot be had.
    """
    for config in configs:
        check_config(config, elsewhere=elsewhere)
    if missing := missing_weights(configs):
        err.print(
            f"Downloading the pretrained weights of {', '.join(info.name for info in missing)} "
            "first"
        )
        with progress_bar() as bar:
            show_work(bar, fetch_weights(missing))


def fetch_descriptions(backbones: Iterable[str]) -> None:
    """Have what the Hub says of networks that are named there, from which their structure follows.

    Raises:
        FinetuneError: when it cannot be had.
    """
    for name in backbones:
        with progress_bar() as bar:
            show_work(bar, in_phase("download", fetch_description(name)))


def use_backbone_size(config: RunConfig) -> RunConfig:
    """The config with the size of images that its backbone was pretrained on; as it is where there is no such backbone.

    Raises:
        FinetuneError: when what the Hub says of it cannot be had.
    """
    try:
        check_backbone_name(config.backbone)
    except ConfigError:
        return config  # it is refused with all else that is wrong
    fetch_descriptions([config.backbone])
    return config.model_copy(update={"image_size": usual_image_size(config.backbone)})
