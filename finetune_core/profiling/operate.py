"""Execution of a profile, round after round, with a given function that trains runs.

Nothing is stored but the runs themselves: they are ordinary runs, found again by their settings and
by the fingerprint of their data. So an interrupted profile continues when it is called again.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from statistics import median

import numpy as np
from torch.nn.utils import get_total_norm

from finetune_core.config import RunConfig
from finetune_core.data.dataset import Dataset, assign_units
from finetune_core.data.splits import TEST, VAL
from finetune_core.errors import ConfigError, FinetuneError, RunError
from finetune_core.evaluation.comparison.arms import arm_titles
from finetune_core.evaluation.comparison.costs import run_cost
from finetune_core.evaluation.comparison.layer_diagnostics import load_layers, representative_run
from finetune_core.evaluation.comparison.paired import ArmPredictions, summarize_accuracy
from finetune_core.evaluation.single_run.metrics import stack_logits
from finetune_core.profiling.gains import simultaneous_gains
from finetune_core.profiling.plan import (
    PARTS,
    Outcome,
    Part,
    Progress,
    advance,
    fit_budget,
    forecast,
)
from finetune_core.profiling.result import Kind, Prediction, Profile, ProfileArm
from finetune_core.profiling.settings import Setup
from finetune_core.runs.convergence import Convergence, judge_together
from finetune_core.runs.design import run_key
from finetune_core.runs.store import Run, RunStore
from finetune_core.training.checkpoints.networks import build_initial_network
from finetune_core.training.devices.speed_book import SpeedBook
from finetune_core.training.forecast.forecast import forecast_run
from finetune_core.training.forecast.timing import calibrate
from finetune_core.training.predictions import load_predictions, predictions_mtime
from finetune_core.training.strategies.stage_plan import list_stages
from finetune_core.work import Work, with_subject

Train = Callable[[Progress], Work[None]]
_EVERYTHING_FOUND = 2**62


@dataclass(frozen=True)
class ProfileRequest:
    """A requested profile.

    Attributes:
        setup: settings of its runs.
        dataset: the data set.
        budget: minutes that it may take, not counting its finished runs; None without a limit.
    """

    setup: Setup
    dataset: Dataset
    budget: float | None = None

    def __post_init__(self) -> None:
        if self.budget is not None and not 0 < self.budget < float("inf"):
            raise ConfigError({"budget": f"must be minutes, more than 0, not {self.budget:g}"})


def profile(asked: ProfileRequest, store: RunStore, train: Train, book: SpeedBook) -> Work[Profile]:
    """Train the missing runs, and return the profile.

    Args:
        asked: the requested profile.
        store: store of the directory that the runs are in.
        train: trains the wanted runs; those that it leaves unfinished count as failed.
        book: speeds that a budget is planned by; missing ones are timed first.

    Yields:
        Steps of ``train`` and of the timing.

    Raises:
        FinetuneError: if a setting or the data cannot be used, or the probe fails.
    """
    setup, failed = asked.setup, dict[str, RunConfig]()
    parts: Collection[Part] = tuple(PARTS)
    if asked.budget is not None:
        known = FinishedRuns(store, asked.dataset)
        needed = forecast(setup, known, (), parts)
        yield from with_subject("", calibrate(needed, asked.dataset, book))
        seconds = partial(_forecast_seconds, dataset=asked.dataset, book=book)
        parts = fit_budget(setup, known, (), seconds, 60 * asked.budget)
    while True:
        known = FinishedRuns(store, asked.dataset)
        progress = advance(setup, known, failed, parts)
        if not progress.wanted:
            return summarise(asked, store, progress, failed)
        yield from train(progress)
        known = FinishedRuns(store, asked.dataset)
        failed |= {
            key: config for config in progress.wanted if (key := run_key(config)) not in known
        }


def load_current_profile(asked: ProfileRequest, store: RunStore) -> Profile | None:
    """Return the profile from the runs that have finished; None before the probe."""
    known = FinishedRuns(store, asked.dataset)
    if not any(run_key(config) in known for config in asked.setup.make_probe_configs()):
        return None
    return summarise(asked, store, advance(asked.setup, known), {})


def count_runs(setup: Setup, known: Mapping[str, Outcome]) -> int:
    """Return the maximum number of runs that are still to be trained if one stage is enough."""
    return len(forecast(setup, known))


def forecast_seconds(asked: ProfileRequest, store: RunStore, book: SpeedBook) -> float | None:
    """Return the time of the runs that are still to be trained; None if a speed is not known."""
    configs = forecast(asked.setup, FinishedRuns(store, asked.dataset))
    try:
        if not all(book.has_all_speeds(config, asked.dataset) for config in configs):
            return None
        return _forecast_seconds(configs, asked.dataset, book)
    except FinetuneError:  # the page that trains it says so
        return None


def _forecast_seconds(configs: Sequence[RunConfig], dataset: Dataset, book: SpeedBook) -> float:
    """Forecast the time of runs in sequence.

    Only the first run of those with equal frozen stages computes them.
    """
    trunks: set[str] = set()
    total = 0.0
    for config in configs:
        trunk = next(iter(config.stage_rates or {}), config.strategy)
        forecast = forecast_run(config, dataset, book, _EVERYTHING_FOUND if trunk in trunks else 0)
        trunks.add(trunk)
        total += forecast.seconds if forecast else 0.0
    return total


class FinishedRuns(Mapping[str, Outcome]):
    """Finished runs on a data set in its current state, by ``run_key``.

    Each run is read when it is asked for.
    """

    def __init__(self, store: RunStore, dataset: Dataset) -> None:
        self._dataset = dataset
        self.runs = {
            run_key(run.config): run
            for run in reversed(store.list_runs())
            if run.status == "finished" and run.started["fingerprint"] == dataset.fingerprint
        }
        self._read: dict[str, Outcome] = {}

    def __getitem__(self, key: str) -> Outcome:
        if key not in self._read:
            self._read[key] = read_outcome(self.runs[key])
        return self._read[key]

    def __contains__(self, key: object) -> bool:
        return key in self.runs

    def __iter__(self) -> Iterator[str]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)


def read_outcome(run: Run) -> Outcome:
    """Read the predictions of a finished run.

    Raises:
        RunError: if its predictions are missing or damaged.
    """
    changed, num_classes = predictions_mtime(run.run_dir), len(run.started["classes"])
    end = run.history.end or {}
    return Outcome(
        run.run_id,
        end["val_loss"],
        *_read_answers(run.run_dir, changed, num_classes),
        run.started["trainable_parameters"],
        run_cost(run).seconds,
    )


@lru_cache(maxsize=512)  # a page reads dozens of runs each time that it is drawn
def _read_answers(run_dir: Path, changed: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which validation images, and which reported images, a run classifies correctly.

    Reported images are the test images, or the validation images without any.
    """
    table = load_predictions(run_dir, num_classes).sort_values("id", ignore_index=True)
    right = stack_logits(table).argmax(axis=1) == table["label"].to_numpy()
    split = table["split"].to_numpy()
    reported = TEST if (split == TEST).any() else VAL
    return right[split == VAL], right[split == reported]


def summarise(
    asked: ProfileRequest, store: RunStore, progress: Progress, failed: Mapping[str, RunConfig]
) -> Profile:
    """Summarise the finished runs of a profile.

    Args:
        asked: the requested profile.
        store: store of the directory that the runs are in.
        progress: progress of the profile.
        failed: runs that could not be trained, by ``run_key``.

    Raises:
        RunError: if runs did not predict the same images.
    """
    setup, known = asked.setup, FinishedRuns(store, asked.dataset)
    groups = _group_runs(setup, progress, known)
    probes = [run_key(config) for config in setup.make_probe_configs() if run_key(config) in known]
    reference = load_predictions(known.runs[probes[0]].run_dir).sort_values("id")
    split = TEST if (reference["split"] == TEST).any() else VAL
    reported = reference[reference["split"] == split]
    right = [_collect_answers(known, keys) for keys in (probes, *(group.keys for group in groups))]
    if len({arm_answers.images for arm_answers in right}) > 1:
        raise RunError("The runs of this profile did not answer the same images: train it again.")
    # Near-duplicates and groups, as far as the data set records them.
    clusters = dict(zip(asked.dataset.table["id"], assign_units(asked.dataset.table), strict=True))
    sets = np.array([clusters[sample] for sample in reported["id"]])
    places = {group.stages: place for place, group in enumerate(groups) if group.kind != "full"}
    whole = next((place for place, group in enumerate(groups) if group.kind == "full"), None)
    chosen = places.get(_sort_stages(setup, progress.chosen)) if progress.chosen else None
    pairs = [(place + 1, 0) for place in range(len(groups))]
    both = chosen is not None and whole is not None
    if chosen is not None and whole is not None:
        pairs.append((whole + 1, chosen + 1))
    gains = simultaneous_gains(right, pairs, 0, sets) if pairs else []
    judged = _judge_convergence(
        known, [*probes, *chain(*(g.keys for g in groups if g.kind != "short"))]
    )
    started = known.runs[probes[0]].started
    arms = tuple(
        ProfileArm(
            group.kind,
            progress.chosen if place == chosen else group.stages,
            arm_answers.mean,
            gain,
            arm_answers.seeds,
            known[group.keys[0]].parameters,
            median(known[key].seconds for key in group.keys),
            _learning_rates(known.runs[group.keys[0]].config, group),
            _worst_convergence([judged.get(key) for key in group.keys]),
            tuple(known.runs[key].run_id for key in group.keys),
        )
        for place, (group, arm_answers, gain) in enumerate(
            zip(groups, right[1:], gains, strict=False)
        )
    )
    return Profile(
        setup.probe.backbone,
        setup.stages,
        progress.round,
        len(progress.wanted),
        split,
        len(reported),
        len(np.unique(sets)),
        right[0].mean,
        arms,
        chosen,
        gains[-1] if both else None,
        progress.path,
        progress.left_out,
        tuple(
            f"{title}, seed {config.seed}" for title, config in _add_titles(list(failed.values()))
        ),
        _collect_predictions(setup, known, groups),
        started["total_parameters"],
    )


@dataclass(frozen=True)
class _Group:
    """Finished runs that train the same stages, by ``run_key``."""

    kind: Kind
    stages: tuple[str, ...]
    keys: tuple[str, ...]


def _group_runs(setup: Setup, progress: Progress, known: FinishedRuns) -> list[_Group]:
    """Return the groups of runs to report, each stage once: at full length if it went on."""
    seeds = [*setup.seeds, *([] if setup.extra_seed is None else [setup.extra_seed])]

    def make_group(kind: Kind, stages: tuple[str, ...], configs: Iterable[RunConfig]) -> _Group:
        keys = (run_key(config) for config in configs)
        return _Group(kind, stages, tuple(key for key in keys if key in known))

    groups = []
    for stage in setup.stages:
        if (rate := progress.rates.get(stage)) is None:
            continue
        alone = (setup.make_stages_config([stage], seed, progress.rates) for seed in seeds)
        long = make_group("stage", (stage,), alone)
        short = make_group("short", (stage,), [setup.make_short_config(stage, rate)])
        groups.append(long if stage in progress.going_on and long.keys else short)
    for stages in progress.sets:
        trained = (setup.make_stages_config(stages, seed, progress.rates) for seed in seeds)
        groups.append(make_group("stages", _sort_stages(setup, stages), trained))
    groups.append(
        make_group("full", setup.stages, (setup.make_full_config(seed) for seed in seeds))
    )
    return [group for group in groups if group.keys]


def _learning_rates(config: RunConfig, group: _Group) -> dict[str, float]:
    rates = config.stage_rates or dict.fromkeys(group.stages, 1.0)
    return {stage: rates[stage] * config.learning_rate for stage in group.stages}


def _sort_stages(setup: Setup, stages: Collection[str]) -> tuple[str, ...]:
    return tuple(name for name in setup.stages if name in stages)


def _add_titles(configs: Sequence[RunConfig]) -> list[tuple[str, RunConfig]]:
    return list(zip(arm_titles(configs), configs, strict=True))


def _collect_answers(known: FinishedRuns, keys: Sequence[str]) -> ArmPredictions:
    return summarize_accuracy(np.stack([known[key].correct for key in keys]))


def _judge_convergence(known: FinishedRuns, keys: Sequence[str]) -> dict[str, Convergence]:
    runs = [known.runs[key] for key in keys]
    judged = judge_together([(run.config, run.history) for run in runs])
    return dict(zip(keys, judged, strict=True))


def _worst_convergence(judged: Sequence[Convergence | None]) -> Convergence:
    """Return the first convergence that has failed, or the first one if none has."""
    convergences = [convergence or Convergence(None, "a short run") for convergence in judged]
    return min(convergences, key=lambda convergence: convergence.converged is not False)


def _collect_predictions(
    setup: Setup, known: FinishedRuns, groups: Sequence[_Group]
) -> tuple[Prediction, ...]:
    """Return forecasts of each stage's gain from the runs."""
    runs = [known.runs[key] for group in groups for key in group.keys]
    layers = load_layers(representative_run(runs)) if runs else None
    probes = {probe.stage: probe.accuracy for probe in layers.probes} if layers else {}
    whole = [known.runs[key] for group in groups if group.kind == "full" for key in group.keys]
    moved = load_layers(representative_run(whole)) if whole else None
    likeness = {stage.name: stage.likeness for stage in moved.stages} if moved else {}
    gradients = _relative_gradients(whole[0]) if whole else {}
    if not (probes or likeness or gradients):
        return ()
    return tuple(
        Prediction(stage, probes.get(stage), gradients.get(stage), likeness.get(stage))
        for stage in setup.stages
    )


def _relative_gradients(run: Run) -> dict[str, float]:
    """Return the relative gradient norm of each stage in the first step that was measured."""
    first = next(iter(run.history.measured_steps), None)
    if first is None:
        return {}
    try:
        beginning = build_initial_network(run.config, run.started["classes"], run.run_dir)
        stages = list_stages(run.config, len(run.started["classes"]))
    except FinetuneError:  # the initial weights are missing
        return {}
    weights = dict(beginning.network.model.named_parameters())
    norms = {
        stage.name: float(get_total_norm([weights[name] for name in stage.parameters]))
        for stage in stages
        if stage.parameters
    }
    return {
        name: values["gradient_norm"] / norms[name]
        for name, values in first["stages"].items()
        if norms.get(name)
    }
