"""The one training loop, a generator of events: for epoch, for batch, forward, loss, backward, step; then validate."""

import math
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy

from finetune_core.config import RunConfig
from finetune_core.data.splits import TEST, TRAIN, VAL
from finetune_core.errors import TrainingError
from finetune_core.training.checkpoints import BEST, LAST, CheckpointInfo, changing_tensors, load_checkpoint, save_checkpoint
from finetune_core.training.compute import train_step
from finetune_core.training.device import used_memory
from finetune_core.training.events import (
    CheckpointSaved,
    EpochEnded,
    Event,
    Progress,
    RunFinished,
    RunStarted,
    RunStopped,
    StepEnded,
)
from finetune_core.training.forecast import SpeedBook, forecast
from finetune_core.training.job import Job
from finetune_core.training.optimizers import learning_rate_factor, make_optimizer, set_learning_rate
from finetune_core.training.predictions import prediction_table, save_predictions
from finetune_core.training.prepare import EVENT_SECONDS, prepare
from finetune_core.training.strategies import apply, describe, trainable_parameters


class StopRequested(Exception):
    """Thrown into ``fit`` to end a run early and in good order."""


@dataclass(frozen=True)
class _Score:
    """How well an epoch did; the best one is the most accurate, at a tie the one with the lower loss."""

    epoch: int = 0
    accuracy: float = -1.0
    loss: float = math.inf

    def beats(self, other: "_Score") -> bool:
        return (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


def fit(config: RunConfig, run_dir: Path) -> Iterator[Event]:
    """Train, validate, keep the best epoch, predict; checkpoints and predictions go to ``run_dir``.

    The last event is RunFinished, or RunStopped after ``throw(StopRequested())``. The validation images' predictions are
    those of the best checkpoint; those of the test images join them at the end.

    Raises:
        FinetuneError: when the run cannot start, or cannot go on.
    """
    began, memory_before = time.monotonic(), used_memory()
    best, epoch = _Score(), 0
    try:
        job = yield from prepare(config)
        yield _started(job)
        optimizer = make_optimizer(config, job.strategy, job.network.stages, job.network.model)
        training_began = time.monotonic()
        for epoch in range(1, config.epochs + 1):
            epoch_began = time.monotonic()
            train_loss, train_accuracy = yield from _train(job, optimizer, epoch, training_began)
            trained = time.monotonic()
            logits = yield from _predict(job, VAL, "validate")
            if not np.isfinite(logits).all():
                raise _diverged(f"after epoch {epoch}", config.learning_rate)
            score = _score(job, logits, epoch)
            ended = time.monotonic()
            saved = [LAST]
            if score.beats(best):
                best, best_logits = score, logits
                saved.append(BEST)
                save_predictions(run_dir, _table(job, VAL, logits))
            # All is on disk before it is told: whoever stops the run at one of these events finds what they speak of.
            checkpoints = [_save(job, run_dir, name, epoch) for name in saved]
            yield EpochEnded(
                epoch,
                train_loss,
                train_accuracy,
                score.loss,
                score.accuracy,
                train_seconds=trained - epoch_began,
                val_seconds=ended - trained,
                seconds=ended - training_began,
                memory_bytes=max(0, used_memory() - memory_before),
            )
            yield from checkpoints
        if best.epoch != epoch:
            job.network.model.load_state_dict(load_checkpoint(run_dir, BEST)[0], strict=False)
        test_accuracy = None
        if len(job.rows[TEST]):
            logits = yield from _predict(job, TEST, "test")
            save_predictions(run_dir, pd.concat([_table(job, VAL, best_logits), _table(job, TEST, logits)], ignore_index=True))
            test_accuracy = float((logits.argmax(1) == job.labels[job.rows[TEST]]).mean())
        frozen = audit_frozen(job)
        yield RunFinished(epoch, best.epoch, best.accuracy, best.loss, test_accuracy, time.monotonic() - began, frozen)
    except StopRequested:
        yield RunStopped(epoch, best.epoch, time.monotonic() - began)


def audit_frozen(job: Job) -> int:
    """Compare every frozen parameter and buffer, bit for bit, with the backbone as it was loaded.

    Returns:
        How many tensors were compared.
    """
    now, before = job.network.model.state_dict(), job.network.pretrained.state_dict()
    names = [
        name
        for stage, plan in zip(job.network.stages, job.strategy, strict=True)
        if plan.frozen and plan.batchnorm == "frozen"
        for name in (*stage.parameters, *stage.buffers)
        if name in now
    ]
    if moved := [name for name in names if not torch.equal(now[name].cpu(), before[name])]:
        raise AssertionError(f"frozen tensors have changed: {', '.join(moved)}")
    return len(names)


def _train(job: Job, optimizer: torch.optim.Optimizer, epoch: int, began: float) -> Generator[Event, None, tuple[float, float]]:
    """One epoch; returns its mean loss and accuracy, as they were while it went on."""
    config = job.config
    apply(job.strategy, job.network.stages, job.network.model, epoch)
    batches = job.training_batches(epoch)
    seen, loss_sum, correct = 0, 0.0, 0
    for step, (rows, inputs) in enumerate(job.training_inputs(batches, epoch), start=1):
        position = (epoch - 1) * len(batches) + step - 1
        factor = learning_rate_factor(config, position, len(batches))
        set_learning_rate(optimizer, factor)
        labels = torch.from_numpy(job.labels[rows]).to(inputs.device)
        # Dropout's randomness depends on the step alone.
        loss, logits = train_step(job.forward, inputs, labels, optimizer, job.device, (config.seed << 32) + position)
        value = loss.item()
        if not math.isfinite(value):
            raise _diverged(f"at step {step} of epoch {epoch}", config.learning_rate * factor)
        seen += len(rows)
        loss_sum += value * len(rows)
        correct += int((logits.argmax(1) == labels).sum())
        yield StepEnded(
            epoch,
            step,
            value,
            epoch_loss=loss_sum / seen,
            epoch_accuracy=correct / seen,
            learning_rate=config.learning_rate * factor,
            images=(epoch - 1) * len(job.rows[TRAIN]) + seen,
            seconds=time.monotonic() - began,
        )
    return loss_sum / seen, correct / seen


def _diverged(when: str, learning_rate: float) -> TrainingError:
    return TrainingError(
        f"The loss was no longer a number {when} (learning rate {learning_rate:g}). "
        "Try a learning rate ten times lower. The best epoch before this is kept."
    )


@torch.no_grad()
def _logits(job: Job, inputs: torch.Tensor) -> np.ndarray:
    with job.device.autocast():
        return job.forward(inputs).float().cpu().numpy()


def _predict(job: Job, split: str, phase: str) -> Generator[Event, None, np.ndarray]:
    """Logits float32 ``[n, classes]`` of a split's readable images, in the table's order."""
    job.network.model.eval()
    found, done, spoken = [], 0, time.monotonic()
    for rows, inputs in job.evaluation_inputs(split):
        found.append(_logits(job, inputs))
        done += len(rows)
        if time.monotonic() - spoken >= EVENT_SECONDS:
            spoken = time.monotonic()
            yield Progress(phase, done, len(job.rows[split]))
    return np.concatenate(found)


def _score(job: Job, logits: np.ndarray, epoch: int) -> _Score:
    labels = job.labels[job.rows[VAL]]
    loss = cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels)).item()
    return _Score(epoch, float((logits.argmax(1) == labels).mean()), loss)


def _started(job: Job) -> RunStarted:
    config, stages, dataset = job.config, job.network.stages, job.dataset
    return RunStarted(
        backbone=config.backbone,
        weights=config.weights,
        weights_hash=job.network.weights_hash,
        strategy=config.strategy,
        stages=describe(job.strategy, stages),
        trainable_parameters=trainable_parameters(job.strategy, stages),
        total_parameters=sum(stage.parameter_count for stage in stages),
        classes=list(dataset.classes),
        counts={split: len(rows) for split, rows in job.rows.items() if len(rows)},
        fingerprint=dataset.fingerprint,
        findings=[
            {"kind": finding.kind, "severity": finding.severity, "count": finding.count, "message": finding.message}
            for finding in dataset.findings
        ],
        epochs=config.epochs,
        steps_per_epoch=len(job.training_batches(1)),
        device=job.device.kind,
        device_label=job.device.label,
        precision=job.device.precision,
        cache=job.report.to_json(),
        decode_seconds=job.decode_seconds,
        decoded=job.decoded,
        forecast=_expected(job),
    )


def _expected(job: Job) -> dict[str, float] | None:
    book = SpeedBook()
    speed, reading = book.speed(job.config), book.decode_seconds(job.dataset, job.config.image_size)
    if speed is None or reading is None:
        return None
    told = forecast(job.config, job.dataset, speed, reading, job.report.found)
    return {name: getattr(told, name) for name in ("seconds", "epoch_seconds", "memory_bytes", "cache_bytes")}


def _save(job: Job, run_dir: Path, name: str, epoch: int) -> CheckpointSaved:
    tensors = changing_tensors(job.network.model, job.network.stages, job.strategy)
    info = CheckpointInfo(epoch, job.config.backbone, job.network.weights_hash, job.dataset.classes)
    save_checkpoint(run_dir, name, tensors, info)
    return CheckpointSaved(name, epoch)


def _table(job: Job, split: str, logits: np.ndarray) -> pd.DataFrame:
    rows = job.rows[split]
    return prediction_table(job.dataset.table["id"].iloc[rows], split, job.labels[rows], logits)
