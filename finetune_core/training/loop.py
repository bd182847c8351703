"""The training loop, a generator of events.

For each epoch and batch: forward, loss, backward, step. Then validation.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from finetune_core.config import RunConfig
from finetune_core.data.splits import TEST, TRAIN, VAL
from finetune_core.errors import TrainingError
from finetune_core.files import path_exists
from finetune_core.models.nearest import count_neighbours
from finetune_core.randomness import step_seed
from finetune_core.training.averaging.ensembles import create_ensemble_run
from finetune_core.training.averaging.weights import average_weights
from finetune_core.training.checkpoints.files import (
    BEST,
    HEAD,
    LAST,
    CheckpointInfo,
    checkpoint_path,
    save_checkpoint,
)
from finetune_core.training.checkpoints.networks import head_tensors
from finetune_core.training.devices.device import read_numerics
from finetune_core.training.devices.memory import peak_memory_bytes
from finetune_core.training.devices.out_of_memory import explain_out_of_memory
from finetune_core.training.devices.ranks import ALONE, GradientSum, Ranks
from finetune_core.training.devices.speed_book import SpeedBook
from finetune_core.training.evaluation import (
    FinalEvaluation,
    evaluate_best,
    make_prediction_table,
    predict_splits,
)
from finetune_core.training.events import (
    CheckpointSaved,
    ClassCounts,
    Counts,
    EpochEnded,
    Event,
    Expected,
    MemoryShort,
    RunFinished,
    RunResumed,
    RunStarted,
    RunStopped,
    StepEnded,
)
from finetune_core.training.footprint import (
    Footprint,
    max_footprint,
    measure_footprint,
    record_saved_storages,
)
from finetune_core.training.forecast.forecast import forecast_run
from finetune_core.training.heads.fitting import fit_head, fit_probe
from finetune_core.training.job import Job, make_step_rule
from finetune_core.training.lost import LostImages
from finetune_core.training.prediction_history import add_predictions
from finetune_core.training.predictions import FINAL_PRECISION, remove_predictions, save_predictions
from finetune_core.training.prepare import list_finding_rows, prepare
from finetune_core.training.step.compute import SharedStep, StepRule, train_step
from finetune_core.training.step.early_stopping import EarlyStopping
from finetune_core.training.step.loss_scale import LossScale, make_loss_scale
from finetune_core.training.step.movement import copy_parameters, is_measured, measure_step
from finetune_core.training.step.optimizers import make_optimizer
from finetune_core.training.step.pending import (
    PendingStep,
    ReadStep,
    make_pending_step,
    read_back,
    seconds_between_reads,
)
from finetune_core.training.step.running_metrics import RunningMetrics
from finetune_core.training.step.schedules import learning_rate_factor, set_learning_rate
from finetune_core.training.step.weight_ema import WeightEMA
from finetune_core.training.strategies.catalogue import count_epochs, has_fitted_initial_head
from finetune_core.training.strategies.freezing import apply_strategy, has_trained_batchnorm
from finetune_core.training.strategies.stage_plan import (
    count_parameters,
    count_trainable_parameters,
    describe_strategy,
    list_frozen_tensors,
)
from finetune_core.training.training_state import (
    TrainingState,
    restore_training_state,
    save_training_state,
)

CHECKPOINT_SECONDS = 120  # between two checkpoints within an epoch


class StopRequested(Exception):
    """Exception that is thrown into ``fit`` to end a run early and cleanly.

    Attributes:
        pause: Whether the run is meant to go on later.
    """

    def __init__(self, *, pause: bool = False) -> None:
        super().__init__()
        self.pause = pause


def fit(
    config: RunConfig,
    run_dir: Path,
    *,
    resume: bool = False,
    roots: Sequence[Path] = (),
    ranks: Ranks = ALONE,
) -> Generator[Event, None, None]:
    """Train, validate, keep the best epoch and evaluate it in fp32.

    Checkpoints and predictions are written to ``run_dir``. The last event is RunFinished, or
    RunStopped after ``throw(StopRequested())``.

    The predictions are those of the best checkpoint. While the run goes on they cover the
    validation images, in the run's own precision. Once it has finished they are in fp32 and cover
    the test images, too.

    Args:
        config: Settings of the run.
        run_dir: The run directory.
        resume: Go on from where ``last`` was written, as if nothing had happened.
        roots: When given, images outside these folders are left out.
        ranks: The processes that train this run together. Only rank 0 writes to the run directory,
            which all ranks read. Only its events count, and only rank 0 may be asked to stop.

    Raises:
        FinetuneError: If the run cannot start or cannot go on.
    """
    start_time = time.monotonic()
    state, trainer = TrainingState(RunningMetrics.zeros(0)), None
    early_stopping = EarlyStopping.from_config(config)
    try:
        if config.is_ensemble:
            yield from create_ensemble_run(config, run_dir, roots)
            return
        job = yield from prepare(config, roots, run_dir, ranks)
        if not count_epochs(config):
            yield from _train_without_epochs(job, run_dir, start_time, roots)
            return
        state.metrics = RunningMetrics.zeros(len(job.dataset.classes))
        yield _make_run_started(job)
        lost = LostImages(job)
        restores = resume and path_exists(checkpoint_path(run_dir, LAST))
        if not restores and has_fitted_initial_head(config, head_kept=job.head_kept):
            initialized = yield from fit_probe(job, lost, config.init_seed)
            _save_head(job, run_dir)
            yield initialized
        trainer = _make_trainer(job, run_dir, lost)
        if resume:
            if restores:
                state = restore_training_state(
                    job, trainer.optimizer, trainer.average, trainer.scale, run_dir
                )
            yield RunResumed(state.epoch, state.step)
        state.since = time.monotonic()
        while state.epoch <= config.epochs and not early_stopping.is_due(
            state.epoch - 1, state.watched_epoch
        ):
            yield from _train_epoch(trainer, state)
            yield from _validate(trainer, state)
        final = yield from evaluate_best(job, run_dir, trainer.lost)
        yield _make_run_finished(
            job,
            final,
            state.epoch - 1,
            state.best_epoch,
            time.monotonic() - start_time + state.seconds,
        )
    except StopRequested as request:
        if trainer is not None:
            trainer.save(state)
        epoch = state.epoch if state.step else state.epoch - 1
        yield RunStopped(
            epoch, state.best_epoch, time.monotonic() - start_time + state.seconds, request.pause
        )


def _train_without_epochs(
    job: Job, run_dir: Path, start_time: float, roots: Sequence[Path]
) -> Generator[Event, None, None]:
    """Train a run without epochs.

    Nothing is kept before the network is ready: such a run resumes by starting again.
    """
    lost = LostImages(job)
    yield _make_run_started(job)
    # They may come from an earlier attempt at this run, which was cut off.
    remove_predictions(run_dir)
    trained = job
    if job.config.averaged:
        yield from average_weights(job, lost, roots)
    else:
        trained = replace(job, network=(yield from fit_head(job, lost)))
    yield _save_best(trained, run_dir, 0)
    final = yield from evaluate_best(job, run_dir, lost)
    yield _make_run_finished(job, final, 0, 0, time.monotonic() - start_time)


def _make_run_finished(
    job: Job, final: FinalEvaluation, epochs: int, best_epoch: int, seconds: float
) -> RunFinished:
    return RunFinished(
        epochs,
        best_epoch,
        final.val_accuracy,
        final.val_loss,
        final.test_accuracy,
        seconds=seconds,
        frozen_tensors=audit_frozen(job),
        evaluation_seconds=final.seconds,
        evaluation_precision=FINAL_PRECISION,
    )


@dataclass(frozen=True)
class _Trainer:
    """The parts of a run that change while it trains.

    Attributes:
        fitting_sizes: How many images went through at a time, one entry for each time that memory
            ran out.
        footprints: Memory in use, one entry per measurement.
    """

    job: Job
    run_dir: Path
    optimizer: torch.optim.Optimizer
    average: WeightEMA | None
    scale: LossScale | None
    rule: StepRule
    lost: LostImages
    gradients: GradientSum
    fitting_sizes: list[int] = field(default_factory=list)
    footprints: list[Footprint] = field(default_factory=list)

    def save(self, state: TrainingState) -> CheckpointSaved:
        if self.job.ranks.is_main_process:
            save_training_state(
                self.job, self.optimizer, self.average, self.scale, state, self.run_dir
            )
        return CheckpointSaved(LAST, state.epoch - 1)

    @property
    def step_rule(self) -> StepRule:
        """Rule of the next step, with as many images at a time as are known to fit."""
        return (
            replace(self.rule, micro_batch=self.fitting_sizes[-1])
            if self.fitting_sizes
            else self.rule
        )

    @contextmanager
    def use_evaluation_weights(self) -> Iterator[None]:
        """Put the weights to evaluate and keep into the network within the block.

        With weight EMA these are the averages. Otherwise the network stays as it is.
        """
        if self.average is None:
            yield
            return
        try:
            with self.average.swap_in():
                self.job.low_rank.merge()
                yield
        finally:
            self.job.low_rank.merge()


def _make_trainer(job: Job, run_dir: Path, lost: LostImages) -> _Trainer:
    config, network = job.config, job.network
    optimizer = make_optimizer(config, job.strategy, network.stages, network.model, job.low_rank)
    average = WeightEMA(job.changing_tensors(), config.ema) if config.ema else None
    scale = make_loss_scale(job.device)
    return _Trainer(
        job,
        run_dir,
        optimizer,
        average,
        scale,
        make_step_rule(job),
        lost,
        GradientSum(job.ranks),
    )


def audit_frozen(job: Job) -> int:
    """Check that training has changed no frozen tensor.

    Frozen parameters and buffers must equal those the run began with, bit for bit. With LoRA, each
    merged weight must equal its start plus its factors.

    Returns:
        The number of frozen tensors compared.

    Raises:
        AssertionError: If one has changed.
    """
    current, initial = job.network.model.state_dict(), job.network.pretrained.state_dict()
    names = [
        name
        for stage, plan in zip(job.network.stages, job.strategy, strict=True)
        for name in list_frozen_tensors(plan, stage)
        if name in current
    ]
    if moved := [name for name in names if not torch.equal(current[name].cpu(), initial[name])]:
        raise AssertionError(f"frozen tensors have changed: {', '.join(moved)}")
    if moved := job.low_rank.find_unmerged():
        raise AssertionError(f"weights are not their start and their factors: {', '.join(moved)}")
    return len(names)


@dataclass
class _PendingSteps:
    """The steps of an epoch that have not been read back yet.

    Attributes:
        start_time: When the first step of the epoch began, on the clock of ``time.monotonic``.
        last_read_seconds: When steps were last read back, in seconds of the run.
        last_save_time: When a checkpoint was last written, on the clock of ``time.monotonic``.
    """

    start_time: float
    last_read_seconds: float
    last_save_time: float = field(default_factory=time.monotonic)
    steps: list[PendingStep] = field(default_factory=list)


def _train_epoch(trainer: _Trainer, state: TrainingState) -> Iterator[Event]:
    """Train the remaining steps of an epoch.

    ``state`` advances with each step. No event is yielded while a step has not been read back.
    """
    job, epoch = trainer.job, state.epoch
    apply_strategy(job.strategy, job.network.stages, job.network.model, epoch)
    batches, read_interval = job.training_batches(epoch), seconds_between_reads(job.device)
    pending = _PendingSteps(time.monotonic() - state.train_seconds, state.elapsed)
    for step, (rows, inputs) in enumerate(
        job.training_inputs(batches[state.step :], epoch), start=state.step + 1
    ):
        own_rows = rows[: len(rows) - job.num_partners(batches[step - 1])]
        gathered = job.ranks.all_gather((own_rows, job.lost))
        lost = {row: reason for _, reasons in gathered for row, reason in reasons.items()}
        if lost.keys() - trainer.lost.known.keys():
            yield from _report_steps(trainer, state, pending)
            yield from trainer.lost.report(lost)
        state.step = step
        shares = [share for share, _ in gathered]
        if not any(map(len, shares)):
            continue
        pending.steps.append(_take_step(trainer, epoch, step, len(batches), shares, rows, inputs))
        if not read_interval or job.ranks.broadcast(
            state.elapsed - pending.last_read_seconds >= read_interval
        ):
            yield from _report_steps(trainer, state, pending)
    yield from _report_steps(trainer, state, pending)


def _take_step(
    trainer: _Trainer,
    epoch: int,
    step: int,
    steps: int,
    shares: Sequence[np.ndarray],
    rows: np.ndarray,
    inputs: torch.Tensor,
) -> PendingStep:
    """Queue a step on the device without waiting for its results.

    Args:
        trainer: The parts of the run that change while it trains.
        epoch: Number of the epoch, from 1.
        step: Number of the step in the epoch, from 1.
        steps: Number of steps of an epoch.
        shares: Row numbers of the batch, one array per rank.
        rows: Row numbers of this rank's images, its partners for mixing included.
        inputs: Inputs of this rank's images, in the same order.
    """
    job, optimizer, config = trainer.job, trainer.optimizer, trainer.job.config
    position = (epoch - 1) * steps + step - 1
    rate = config.learning_rate * set_learning_rate(
        optimizer, learning_rate_factor(config, position, steps)
    )
    labels, batch = job.get_targets(rows), np.concatenate(shares)
    before = copy_parameters(optimizer) if is_measured(step, steps) else None
    rule = trainer.step_rule
    shared = None
    if job.ranks.is_distributed:
        images, mix_seed = [len(share) for share in shares], step_seed(config.seed, position)
        partners = len(rows) - images[job.ranks.rank]
        shared = SharedStep(
            job.ranks, trainer.gradients, images, job.get_targets(batch), mix_seed, partners
        )
    # Dropout's randomness depends on the step and the rank alone.
    with record_saved_storages(job.forward) if before else nullcontext() as storages:
        seed = step_seed(config.seed, position, job.ranks.rank)
        result = train_step(
            job.forward, inputs, labels, optimizer, job.device, seed, rule, trainer.scale, shared
        )
    if trainer.average:
        with explain_out_of_memory(
            "to average the weights. Freeze more stages, or switch weight EMA off."
        ):
            trainer.average.update(result.skipped if trainer.scale else None)
    largest_share = max(map(len, shares))
    memory_short = result.micro_batch < min(rule.micro_batch or largest_share, largest_share)
    if memory_short:
        trainer.fitting_sizes.append(result.micro_batch)
    if storages is not None:
        trainer.footprints.append(
            measure_footprint(job, optimizer, trainer.average, sum(storages.values()))
        )
    return make_pending_step(
        step,
        job.labels[batch],
        rate,
        result,
        memory_short,
        measure_step(optimizer, before) if before else None,
    )


def _report_steps(
    trainer: _Trainer, state: TrainingState, pending: _PendingSteps
) -> Iterator[Event]:
    """Read back all pending steps, then count and report them.

    A checkpoint is written before they are reported, if one is due.

    Raises:
        TrainingError: If the run has diverged in one of these steps.
    """
    events: list[Event] = []
    diverged: TrainingError | None = None
    for position, (step, numbers) in enumerate(
        read_back(pending.steps, trainer.job.ranks), start=1
    ):
        if numbers.has_diverged:
            diverged = _make_divergence_error(
                trainer.job, f"at step {step.step} of epoch {state.epoch}", step.learning_rate
            )
            break
        state.metrics.add(step.labels, numbers.predicted, numbers.loss)
        state.skipped += numbers.skipped
        state.stages = numbers.stages or state.stages
        if step.memory_short:
            events.append(MemoryShort(state.epoch, step.step, step.micro_batch))
        # The pending steps are assumed to have taken equally long.
        unread_seconds = state.elapsed - pending.last_read_seconds
        seconds = pending.last_read_seconds + unread_seconds * position / len(pending.steps)
        events.append(_make_step_ended(trainer.job, state, step, numbers, seconds))
    pending.steps.clear()
    pending.last_read_seconds = state.elapsed
    state.train_seconds = time.monotonic() - pending.start_time
    if events and not diverged and time.monotonic() - pending.last_save_time > CHECKPOINT_SECONDS:
        events.insert(0, trainer.save(state))
        pending.last_save_time = time.monotonic()
    request = yield from _yield_all(events)
    if error := diverged or request:
        raise error


def _make_step_ended(
    job: Job, state: TrainingState, step: PendingStep, numbers: ReadStep, seconds: float
) -> StepEnded:
    return StepEnded(
        state.epoch,
        step.step,
        numbers.loss,
        epoch_loss=state.metrics.loss,
        epoch_accuracy=state.metrics.accuracy,
        learning_rate=step.learning_rate,
        images=(state.epoch - 1) * len(job.rows[TRAIN]) + state.metrics.num_images,
        seconds=seconds,
        gradient_norm=0.0 if numbers.skipped else numbers.gradient_norm,
        micro_batch=step.micro_batch,
        stages=numbers.stages,
        skipped=numbers.skipped,
        loss_scale=numbers.loss_scale,
    )


def _yield_all(events: Sequence[Event]) -> Generator[Event, None, StopRequested | None]:
    """Yield the events and return the request to stop, if one arrived meanwhile.

    A request waits until all events are reported, because their steps are done.
    """
    request: StopRequested | None = None
    for event in events:
        try:
            yield event
        except StopRequested as asked:
            request = asked
    return request


def _validate(trainer: _Trainer, state: TrainingState) -> Generator[Event, None, None]:
    """Evaluate a trained epoch, save what is to be kept and advance to the next epoch."""
    job, run_dir, epoch, start_time = trainer.job, trainer.run_dir, state.epoch, time.monotonic()
    if not state.metrics.num_images:
        raise TrainingError(
            "None of the training images can be read any more. Put them back and resume the run."
        )
    _check_equal_weights(job)
    with trainer.use_evaluation_weights():
        rows, logits = yield from predict_splits(job, [VAL], "validate", trainer.lost)
        if not np.isfinite(logits).all():
            raise _make_divergence_error(job, f"after epoch {epoch}", job.config.learning_rate)
        labels, predicted = job.labels[rows], logits.argmax(1)
        loss = cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels)).item()
        val_metrics = RunningMetrics.zeros(len(job.dataset.classes))
        val_metrics.add(labels, predicted, loss)
        # Write to disk first, report later: a person who stops the run at one of these events finds
        # everything that the event reports.
        if job.ranks.is_main_process:
            add_predictions(
                run_dir,
                epoch,
                job.dataset.table["id"].to_numpy()[rows],
                job.keys[rows],
                labels,
                predicted,
            )
        checkpoints = []
        if state.record_epoch(
            epoch,
            val_metrics.accuracy,
            loss,
            EarlyStopping.from_config(job.config).compute_value(val_metrics),
        ):
            if job.ranks.is_main_process:
                save_predictions(
                    run_dir, make_prediction_table(job, rows, logits), job.device.precision
                )
            checkpoints.append(_save_best(job, run_dir, epoch))
    memory = max_footprint(trainer.footprints, peak_memory_bytes(job.device, step_bytes=0))
    epoch_ended = EpochEnded(
        epoch,
        state.metrics.loss,
        state.metrics.accuracy,
        loss,
        val_metrics.accuracy,
        train_seconds=state.train_seconds,
        val_seconds=time.monotonic() - start_time,
        seconds=state.elapsed,
        memory_bytes=memory.host,
        device_bytes=memory.device,
        train_scores=state.metrics.compute_scores(),
        val_scores=val_metrics.compute_scores(),
        stages=state.stages,
        skipped_steps=state.skipped,
    )
    state.next_epoch()
    # Report before saving: a run that is killed in between reports the epoch again, and none is
    # lost.
    yield epoch_ended
    yield from checkpoints
    yield trainer.save(state)


def _check_equal_weights(job: Job) -> None:
    """Check that all ranks have the same weights.

    Raises:
        TrainingError: If they have not.
    """
    if not job.ranks.is_distributed:
        return
    floats = [
        tensor.sum(dtype=torch.float64)
        for tensor in job.changing_tensors().values()
        if tensor.is_floating_point()
    ]
    if len(set(job.ranks.all_gather(torch.stack(floats).cpu().numpy().tobytes()))) > 1:
        raise TrainingError(
            "The processes of this run have come to different weights: their processors or "
            "libraries do not compute alike. Resume the run on equal machines."
        )


def _make_divergence_error(job: Job, when: str, learning_rate: float) -> TrainingError:
    alternative = ", or precision fp32" if job.device.precision == "fp16" else ""
    return TrainingError(
        f"The loss or its gradient was not finite {when} (learning rate {learning_rate:g}). "
        f"Try a learning rate ten times lower{alternative}. The best epoch before this is kept."
    )


def _make_run_started(job: Job) -> RunStarted:
    config, stages, dataset = job.config, job.network.stages, job.dataset
    return RunStarted(
        backbone=config.backbone,
        weights=config.initial_weights,
        weights_hash=job.network.weights_hash,
        strategy=config.strategy,
        stages=describe_strategy(job.strategy, stages),
        trainable_parameters=count_trainable_parameters(job.strategy, stages),
        total_parameters=count_parameters(job.strategy, stages),
        classes=list(dataset.classes),
        counts=_count_images(job),
        class_counts=_count_classes(job),
        fingerprint=dataset.fingerprint,
        findings=list_finding_rows(dataset),
        epochs=count_epochs(config),
        steps_per_epoch=len(job.training_batches(1)) if count_epochs(config) else 0,
        device=job.device.kind,
        device_label=job.device.label,
        precision=job.device.precision,
        cache=job.report,
        decode_seconds=job.decode_seconds,
        decoded=job.decoded,
        forecast=_forecast(job),
        numerics=read_numerics(),
        lineage=job.lineage,
        head_kept=job.head_kept,
        averaged=config.averaged.how if config.averaged else None,
        ranks=job.ranks.world_size,
        batchnorm="per_rank"
        if job.ranks.is_distributed
        and has_trained_batchnorm(job.strategy, stages, job.network.model)
        else "",
    )


def _count_images(job: Job) -> Counts:
    counts = Counts(train=len(job.rows[TRAIN]), val=len(job.rows[VAL]))
    if len(job.rows[TEST]):
        counts["test"] = len(job.rows[TEST])
    return counts


def _count_classes(job: Job) -> ClassCounts:
    classes = len(job.dataset.classes)
    return {
        split: np.bincount(job.labels[rows], minlength=classes).tolist()
        for split, rows in job.rows.items()
        if len(rows)
    }


def _forecast(job: Job) -> Expected | None:
    forecast = forecast_run(job.config, job.dataset, SpeedBook(), job.report.found)
    # Timings are of a single device.
    if forecast is None or job.ranks.is_distributed:
        return None
    return Expected(
        seconds=forecast.seconds,
        epoch_seconds=forecast.epoch_seconds,
        memory_bytes=forecast.memory_bytes,
        device_bytes=forecast.device_bytes,
        cache_bytes=forecast.cache_bytes,
    )


def _save_best(job: Job, run_dir: Path, epoch: int) -> CheckpointSaved:
    if job.ranks.is_main_process:
        save_checkpoint(run_dir, BEST, job.changing_tensors(), _make_checkpoint_info(job, epoch))
    return CheckpointSaved(BEST, epoch)


def _save_head(job: Job, run_dir: Path) -> None:
    """Save the head fitted before the first step, for a script that repeats the run."""
    if job.ranks.is_main_process:
        save_checkpoint(run_dir, HEAD, head_tensors(job.network), _make_checkpoint_info(job, 0))


def _make_checkpoint_info(job: Job, epoch: int) -> CheckpointInfo:
    dataset, network = job.dataset, job.network
    return CheckpointInfo(
        epoch,
        job.config.backbone,
        network.weights_hash,
        dataset.classes,
        dataset.fingerprint,
        neighbours=count_neighbours(network),
    )
