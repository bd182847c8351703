"""The ``train`` and ``resume`` commands: build the config, and train a run to its end."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape

from finetune_core.commands.input import load_app_split, parse_rates, unpack_data
from finetune_core.commands.options import report_errors
from finetune_core.commands.runs import download_weights, settings_from_run, use_backbone_size
from finetune_core.commands.terminal import (
    describe_result,
    err,
    ignore_interrupts,
    out,
    print_json,
    progress_bar,
    show_progress,
    show_training,
    show_work,
    stop_on_interrupt,
)
from finetune_core.config import RunConfig, auto_setting_names, make_config
from finetune_core.data.dataset import index_dataset
from finetune_core.data.edits import describe_edits, load_edits, select_effective_edits
from finetune_core.data.listing import check_data
from finetune_core.data.splits import TRAIN
from finetune_core.errors import ConfigError
from finetune_core.evaluation.reference_points import reference_points
from finetune_core.exporters.mlflow import report_to_mlflow
from finetune_core.models.catalogue import default_backbone
from finetune_core.runs.executors.in_process import InProcess
from finetune_core.runs.executors.protocol import Executor
from finetune_core.runs.record import Reservation, create_run, follow
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import Run, RunStore, summarize_run
from finetune_core.training.devices.ranks import Ranks, read_torchrun_ranks
from finetune_core.training.strategies.recipes import AUTO, RECIPES, fill_auto
from finetune_core.work import with_phase

ReservedRun = tuple[Reservation, Executor]


def build_config(
    given: Mapping[str, Any],
    data: str | None,
    earlier: Mapping[str, Any] | None,
    *,
    as_is: bool,
    recipe: str = AUTO,
) -> RunConfig:
    """Return the config of a run.

    Args:
        given: settings, or the text typed for them.
        data: the data set. None: the one of ``earlier``.
        earlier: settings of an earlier run, overridden by the others.
        as_is: leave out the changes and the split made for this data set in the app.
        recipe: ``auto`` or ``tutorial``. With an earlier run, that run's choice wins.

    Raises:
        FinetuneError: if the settings cannot be used, or the data is not available.
    """
    settings: dict[str, Any] = dict(given)
    if isinstance(settings.get("stage_rates"), str):
        settings["stage_rates"] = parse_rates(settings["stage_rates"])
    inherited: dict[str, Any] = {}
    if named := settings.pop("from_run", None):
        inherited = settings_from_run(
            named, [settings["backbone"]] if "backbone" in settings else []
        )
    elif earlier is None:
        settings.setdefault("backbone", default_backbone())
    if as_is:
        settings.setdefault("edits", ())
    if data is not None:
        settings["data"] = unpack_data(data)
        if "edits" not in settings:
            settings["edits"] = select_effective_edits(load_edits(settings["data"]))
            if settings["edits"]:
                changes = describe_edits(settings["edits"])
                err.print(
                    f"With the changes made to this data set (--as-is leaves them out): {changes}"
                )
    base = (
        load_app_split(settings.get("data"), as_is) if earlier is None else dict(earlier)
    ) | inherited
    config = fill_recipe(base, settings, recipe)
    at_given_size = inherited or earlier is not None or "image_size" in settings
    return config if at_given_size else use_backbone_size(config)


def reserve_run(
    config: RunConfig, runs_dir: Path, executor: Executor | None = None, devices: int = 1
) -> Reservation:
    """Reserve a run after downloading its initial weights.

    Args:
        config: settings of the run.
        runs_dir: folder of the run directories.
        executor: executor of the run. None: this process.
        devices: as for ``create_run``.

    Raises:
        FinetuneError: if the weights are not available, the folder cannot be written, or that many
            devices cannot share the run.
    """
    executor = executor or InProcess()
    executor.check(config, devices)
    download_weights([config], remote=executor.remote)
    return create_run(config, runs_dir.resolve(), remote=executor.remote, devices=devices)


def train_reserved(reservation: Reservation, executor: Executor | None = None) -> Run:
    """Train a reserved run until it finishes or Ctrl-C stops it.

    Args:
        reservation: the run.
        executor: executor of the run. None: this process.

    Raises:
        FinetuneError: as ``execute`` does.
    """
    stop = partial(request_stop, reservation.run_dir)
    try:
        with (
            stop_on_interrupt(stop),
            progress_bar() as bar,
            closing((executor or InProcess()).execute(reservation)) as events,
        ):
            show_training(bar, events)
    finally:
        if warning := report_to_mlflow(reservation.run_dir):
            err.print(escape(warning))
    return RunStore(reservation.run_dir.parent).load_run(reservation.run_dir)


def train_and_report(
    reservation: Reservation, as_json: bool, executor: Executor | None = None
) -> None:
    """Train a run and print the result. Exit with status 1 unless the run finishes."""
    with report_errors():
        run = train_reserved(reservation, executor)
    result, points = summarize_run(run), reference_points(run)
    if as_json:
        print_json(result | {"reference_points": points.to_json()})
    else:
        out.print(describe_result(result, escape(points.to_sentence())))
    if run.status != "finished":
        raise typer.Exit(1)


def train_on_devices(
    reserve: Callable[[Ranks], AbstractContextManager[ReservedRun]], devices: int, as_json: bool
) -> None:
    """Train a run on several devices.

    Under torchrun, rank 0 acts like a single process. The other ranks take part and are silent.

    Args:
        reserve: returns a context manager that reserves the run and yields the run and its
            executor.
        devices: number of devices.
        as_json: print JSON.
    """
    ranks = read_torchrun_ranks()
    with (
        nullcontext() if ranks.is_main_process else show_progress(False),
        report_errors(),
        ranks.connect(),
    ):
        if ranks.is_distributed and devices > 1:
            raise ConfigError(
                {
                    "devices": "torchrun says how many: leave this out, or start the command "
                    "without torchrun"
                }
            )
        if ranks.is_main_process:
            with report_errors(), reserve(ranks) as (reservation, executor):
                train_and_report(reservation, as_json, executor)
        else:
            with ignore_interrupts():
                follow(ranks)


def fill_recipe(base: Mapping[str, Any], settings: Mapping[str, Any], recipe: str) -> RunConfig:
    """Return the config of ``base`` and ``settings``, with open settings chosen by the recipe.

    Raises:
        ConfigError: if there is no such recipe, or the settings cannot be used.
        DataError: if the images cannot be counted.
    """
    if recipe not in RECIPES:
        raise ConfigError({"recipe": f"must be {' or '.join(RECIPES)}, not {recipe!r}"})
    auto = base.get("auto", auto_setting_names() if recipe == AUTO else ())
    open_names = [name for name in auto if name not in settings]
    config = make_config({**base, **settings, "auto": open_names})
    return fill_auto(config, count_training_images(config)) if open_names else config


def count_training_images(config: RunConfig) -> int:
    """Count the training images of a config's data set.

    Raises:
        ConfigError: if there is no such data set.
        DataError: if the data set cannot be used.
    """
    check_data(config.data)
    with progress_bar() as bar:
        indexing = index_dataset(config.data, **config.split_settings, edits=config.edits)
        dataset = show_work(bar, with_phase("index", indexing))
    return dataset.split_counts.get(TRAIN, 0)
