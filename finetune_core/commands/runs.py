"""Runs as the commands need them: named runs, and the initial weights of new runs."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

from rich.markup import escape

from finetune_core.commands.terminal import err, progress_bar, show_work
from finetune_core.config import RunConfig
from finetune_core.errors import ConfigError, RunError
from finetune_core.models.catalogue import check_backbone_name, default_image_size
from finetune_core.models.weights import PRETRAINED, fetch_description
from finetune_core.runs.store import Run, read_run, resolve_run_dir
from finetune_core.training.prepare import check_config, fetch_weights, list_missing_weights
from finetune_core.work import with_phase


def open_run(named: str | os.PathLike[str]) -> Run:
    """Return a run by its folder or id, and report its unreadable parts on stderr.

    Raises:
        RunError: if there is no such run, or it is damaged.
    """
    run = read_run(resolve_run_dir(named))
    for notice in run.notices:
        err.print(escape(notice))
    return run


def settings_from_run(
    named: Run | str | os.PathLike[str], backbones: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the settings that follow from the run that another run starts from.

    These are that run, its backbone, and the preparation of the input images.

    Args:
        named: the earlier run.
        backbones: the requested backbones.

    Raises:
        ConfigError: if there is no such run, it is still active, or another backbone was requested.
    """
    try:
        run = open_run(named.run_dir if isinstance(named, Run) else named)
    except RunError as error:
        raise ConfigError({"from_run": str(error)}) from None
    if run.is_active:
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


def download_weights(configs: Sequence[RunConfig], *, remote: bool = False) -> None:
    """Download the pretrained weights of several runs before any of the runs is created.

    Args:
        configs: settings of the runs.
        remote: whether the runs may train on other machines with other devices.

    Raises:
        ConfigError: if a run cannot work at all.
        WeightsError: if the weights are not available.
    """
    for config in configs:
        check_config(config, remote=remote)
    if missing := list_missing_weights(configs):
        err.print(
            f"Downloading the pretrained weights of {', '.join(info.name for info in missing)} "
            "first"
        )
        with progress_bar() as bar:
            show_work(bar, fetch_weights(missing))


def fetch_descriptions(backbones: Iterable[str]) -> None:
    """Fetch the Hub's descriptions of networks that are named there.

    A network's structure follows from its description.

    Raises:
        FinetuneError: if a description is not available.
    """
    for name in backbones:
        with progress_bar() as bar:
            show_work(bar, with_phase("download", fetch_description(name)))


def use_backbone_size(config: RunConfig) -> RunConfig:
    """Return the config with the image size that its backbone was pretrained on.

    An unknown backbone leaves the config unchanged.

    Raises:
        FinetuneError: if the Hub's description of the backbone is not available.
    """
    try:
        check_backbone_name(config.backbone)
    except ConfigError:
        return config  # rejected later, together with all other problems
    fetch_descriptions([config.backbone])
    return config.model_copy(update={"image_size": default_image_size(config.backbone)})
