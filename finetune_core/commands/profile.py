"""The ``profile`` command: train each stage alone, in rounds, and print which ones gain."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from finetune_core.commands.input import load_earlier_settings, parse_integers
from finetune_core.commands.runs import download_weights
from finetune_core.commands.terminal import err, out, print_table, progress_bar, show_work
from finetune_core.commands.train import build_config
from finetune_core.commands.train_all import train_all
from finetune_core.config import RunConfig
from finetune_core.data.dataset import index_dataset
from finetune_core.data.splits import TRAIN
from finetune_core.errors import TrainingError
from finetune_core.formatting import pluralize
from finetune_core.profiling.operate import ProfileRequest, profile
from finetune_core.profiling.plan import ROUNDS, Progress
from finetune_core.profiling.result import Profile
from finetune_core.profiling.settings import SEEDS, set_up
from finetune_core.runs.executors.protocol import Executor
from finetune_core.runs.store import RunStore
from finetune_core.training.devices.speed_book import SpeedBook
from finetune_core.training.strategies.recipes import AUTO
from finetune_core.work import Work, finish, with_phase


def prepare_profile(
    given: Mapping[str, Any],
    data: str,
    config: RunConfig | str | os.PathLike[str] | None = None,
    *,
    stages: Sequence[str] = (),
    budget: float | None = None,
    as_is: bool = False,
    recipe: str = AUTO,
    remote: bool = False,
) -> ProfileRequest:
    """Prepare a profile, and download the weights.

    Args:
        given: settings, or the text typed for them. ``seed`` holds several seeds.
        data: the data set, as a person names it.
        config: settings of an earlier run or their file, overridden by the others.
        stages: stages that may train. Empty: all.
        budget: minutes.
        as_is: leave out the changes and the split made for this data set in the app.
        recipe: ``auto`` or ``tutorial``.
        remote: whether the runs may train on other machines.

    Raises:
        FinetuneError: if a setting cannot be used, or data or weights are not available.
    """
    settings = dict(given)
    seeds = _parse_seeds(settings.pop("seed", SEEDS))
    base = build_config(settings, data, load_earlier_settings(config), as_is=as_is, recipe=recipe)
    with progress_bar() as bar:
        indexing = index_dataset(base.data, **base.split_settings, edits=base.edits)
        dataset = show_work(bar, with_phase("index", indexing))
    num_images = dataset.split_counts.get(TRAIN, 0) if base.auto else None
    asked = ProfileRequest(set_up(base, num_images, stages, seeds), dataset, budget)
    download_weights([asked.setup.full], remote=remote)
    return asked


def _parse_seeds(given: str | Iterable[int]) -> list[int]:
    return parse_integers("seed", given) if isinstance(given, str) else list(given)


def train_profile(
    asked: ProfileRequest, runs_dir: Path, *, executor: Executor | None = None, devices: int = 1
) -> Profile:
    """Train the missing runs of a profile, and return the profile.

    Args:
        asked: the profile to train.
        runs_dir: folder of the run directories.
        executor: executor of the runs. None: this process, one run after the other.
        devices: number of devices for each run that takes steps.

    Raises:
        FinetuneError: if the probe fails, or an interrupt has stopped a run.
    """

    def train(progress: Progress) -> Work[None]:
        configs = progress.wanted
        err.print(f"\n{ROUNDS[progress.round]}: {pluralize(len(configs), 'run')}")
        done = train_all(configs, runs_dir, reuse=False, executor=executor, devices=devices)
        if done.stopped:
            raise TrainingError("The profile was stopped. The same command goes on from there.")
        yield from ()

    return finish(profile(asked, RunStore(runs_dir), train, SpeedBook()))


def print_profile(found: Profile) -> None:
    """Print the answer, the table, the path of the selection, and the notes."""
    out.print(f"[bold]{escape(found.sentence)}[/bold]")
    out.print(escape(found.to_text()))
    print_table(*found.to_rows())
    if len(found.path) > 1:
        out.print("Selection, by validation images:")
        print_table(*found.path_rows())
    columns, rows = found.prediction_rows()
    if rows:
        out.print("Forecasts that need no training:")
        print_table(columns, rows)
    for note in found.notes:
        out.print(escape(note))
