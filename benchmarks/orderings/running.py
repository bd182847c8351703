"""Runs of an ordering and their predictions of test images and of shifted images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.orderings.data_sets import Folders, write_folders
from benchmarks.orderings.judging import Predictions
from benchmarks.orderings.plan import make_arm_configs, make_source_config
from benchmarks.orderings.protocol import Axis, Ordering, Setup
from finetune_core.commands.input import unpack_data
from finetune_core.commands.runs import download_weights
from finetune_core.commands.terminal import err, progress_bar, show_work
from finetune_core.commands.train import train_reserved
from finetune_core.config import RunConfig
from finetune_core.data.dataset import index_dataset
from finetune_core.data.public import PUBLIC_SETS, fetch_public
from finetune_core.data.splits import TEST
from finetune_core.errors import RunError
from finetune_core.evaluation.single_run.metrics import stack_logits
from finetune_core.evaluation.single_run.shift import predict_shifted
from finetune_core.evaluation.single_run.shift_files import load_shifted_predictions
from finetune_core.runs.record import create_run, reopen_run
from finetune_core.runs.store import Run, RunStore, summarize_run
from finetune_core.training.checkpoints.parents import make_averaged_config
from finetune_core.training.predictions import load_predictions
from finetune_core.training.strategies.catalogue import count_epochs
from finetune_core.training.strategies.stage_plan import list_stages
from finetune_core.work import with_phase


@dataclass(frozen=True)
class OrderingRuns:
    """Finished runs of an ordering.

    Attributes:
        arms: arm -> its runs, one per seed.
        shifted: folder of the shifted images. None without a shift.
    """

    arms: Mapping[str, Sequence[Run]]
    shifted: Path | None


def train_ordering(ordering: Ordering, setup: Setup, seeds: int, base: Path) -> OrderingRuns:
    """Prepare the data and train all runs that are not in ``base`` yet.

    Raises:
        FinetuneError: if data or weights are not available, or a run fails.
        KeyboardInterrupt: if a run was stopped.
    """
    folders = _prepare_folders(ordering, setup, base / "data")
    store = RunStore(base / "runs")
    source = None
    if folders.source:
        source = _find_or_train(make_source_config(ordering, setup, folders.source), store).run_dir
    stages = [
        stage.name for stage in list_stages(make_source_config(ordering, setup, folders.data))
    ]
    configs = make_arm_configs(ordering, setup, folders.data, stages, seeds, source)
    download_weights([config for arm in configs.values() for seed in arm for config in seed])
    runs = {
        name: [[_find_or_train(config, store) for config in members] for members in by_seed]
        for name, by_seed in configs.items()
    }
    combined = {
        name: [_combine_runs(arm.how, members, store) for members in runs[arm.of]]
        for name, arm in ordering.arms.items()
        if arm.of
    }
    single = {
        name: [members[0] for members in by_seed]
        for name, by_seed in runs.items()
        if ordering.arms[name].runs == 1
    }
    return OrderingRuns(single | combined, folders.shifted)


def collect_predictions(runs_of_arms: OrderingRuns) -> dict[Axis, Predictions]:
    """Return the predictions of all arms by axis.

    Raises:
        FinetuneError: if a run's predictions cannot be read or made.
    """
    all_runs = [run for runs in runs_of_arms.arms.values() for run in runs]
    tables: dict[Axis, dict[Path, pd.DataFrame]] = {
        "test": {run.run_dir: _load_test_predictions(run) for run in all_runs}
    }
    if runs_of_arms.shifted:
        with progress_bar() as bar:
            fingerprint = show_work(bar, predict_shifted(all_runs, str(runs_of_arms.shifted)))
        tables["shifted"] = {
            run.run_dir: load_shifted_predictions(run.run_dir, fingerprint, _count_classes(run))
            for run in all_runs
        }
    in_steps = frozenset(
        name for name, runs in runs_of_arms.arms.items() if count_epochs(runs[0].config) > 0
    )
    return {
        axis: Predictions(
            next(iter(of_runs.values()))["label"].to_numpy(np.int64),
            {
                name: np.stack([stack_logits(of_runs[run.run_dir]) for run in runs])
                for name, runs in runs_of_arms.arms.items()
            },
            in_steps,
        )
        for axis, of_runs in tables.items()
    }


def _prepare_folders(ordering: Ordering, setup: Setup, base: Path) -> Folders:
    with progress_bar() as bar:
        if setup.data in PUBLIC_SETS:
            show_work(bar, with_phase("download", fetch_public(setup.data)))
        dataset = show_work(bar, with_phase("index", index_dataset(unpack_data(setup.data))))
    return write_folders(ordering, setup, dataset, base)


def _find_or_train(config: RunConfig, store: RunStore) -> Run:
    """Return the finished run of a config. If there is none, resume or train one."""
    existing = [run for run in store.list_runs() if run.config == config]
    if finished := [run for run in existing if run.status == "finished"]:
        return finished[0]
    err.print(
        f"{config.averaged.title if config.averaged else config.strategy}, seed {config.seed}"
    )
    resumable = max(
        (run for run in existing if run.is_resumable),
        key=lambda run: len(run.history.epochs),
        default=None,
    )
    run = train_reserved(
        reopen_run(resumable.run_dir) if resumable else create_run(config, store.runs_dir)
    )
    if run.status == "failed":
        raise RunError(f"{run.run_id} failed: {summarize_run(run)['message']}")
    if run.status != "finished":
        raise KeyboardInterrupt
    return run


def _combine_runs(how: str, members: Sequence[Run], store: RunStore) -> Run:
    """Return the best of the runs of one seed, or their average."""
    if how == "best":
        return max(members, key=lambda run: float(summarize_run(run)["val_accuracy"]))
    return _find_or_train(make_averaged_config(how, [run.run_dir for run in members]), store)


def _load_test_predictions(run: Run) -> pd.DataFrame:
    table = load_predictions(run.run_dir, _count_classes(run))
    return table[table["split"] == TEST].sort_values("id", ignore_index=True)


def _count_classes(run: Run) -> int:
    return len(run.started["classes"])
