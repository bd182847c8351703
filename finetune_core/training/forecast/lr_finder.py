"""Learning-rate range test (Smith 2017).

It takes a few steps at rising rates, with a network of its own, from the cached trunk.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune_core.config import RunConfig
from finetune_core.errors import ConfigError, TrainingError
from finetune_core.training.devices.device import choose_device
from finetune_core.training.devices.turn import run_in_turn
from finetune_core.training.events import Event, Progress
from finetune_core.training.heads.fitting import fit_probe
from finetune_core.training.job import Inputs, Job, make_step_rule
from finetune_core.training.lost import LostImages
from finetune_core.training.prepare import check_config, prepare
from finetune_core.training.step.compute import train_step
from finetune_core.training.step.loss_scale import make_loss_scale
from finetune_core.training.step.optimizers import make_optimizer
from finetune_core.training.strategies.catalogue import count_epochs, has_fitted_initial_head
from finetune_core.training.strategies.freezing import apply_strategy
from finetune_core.work import Step, Work

_LOWEST, _HIGHEST = 1e-7, 10.0
_STEPS = 100
_SMOOTHING = 0.9  # share of earlier losses in the smoothed one
_DIVERGED = 4.0  # times the lowest loss


@dataclass(frozen=True)
class RateCurve:
    """Result of a range test.

    Attributes:
        rates: One per step.
        losses: Smoothed losses, one per step.
        suggestion: A tenth of the rate where the loss was lowest before it rose, or the rate where
            it fell the fastest, whichever is lower (as in fastai's ``minimum`` and ``steep``). None
            where the loss never fell.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float | None


def find_rate(config: RunConfig, roots: Sequence[Path] = ()) -> Work[RateCurve]:
    """Prepare a run and train a copy of its network at rising rates. Nothing is kept.

    It waits for its turn on the device.

    Args:
        config: Settings of the run.
        roots: When given, images outside these folders are left out.

    Yields:
        Steps of the phase ``device`` while it waits, of every phase before a run's first step, then
        of ``rates``.

    Raises:
        FinetuneError: If the run could not start, or no step at all could be made.
    """
    # Fail at once, not after waiting for the device.
    check_config(config)
    if not count_epochs(config):
        raise ConfigError(
            {"strategy": "is fitted without steps, so that there is no learning rate to find"}
        )
    device = choose_device(config.device, config.precision)
    return (yield from run_in_turn(_run_test(config, roots), device.kind))


def _run_test(config: RunConfig, roots: Sequence[Path]) -> Work[RateCurve]:
    preparation = _prepare_job(config, roots)
    while True:
        try:
            event = next(preparation)
        except StopIteration as finished:
            job = finished.value
            break
        if isinstance(event, Progress):
            yield Step(event.done, event.total or None, event.phase)
    rates, losses = yield from _raise_rate(job)
    if len(losses) < 3:
        raise TrainingError(
            "The loss was not finite from the start, at the lowest rates: check the data and the "
            "weights."
        )
    return RateCurve(tuple(rates), tuple(losses), suggest_rate(rates, losses))


def _prepare_job(config: RunConfig, roots: Sequence[Path]) -> Generator[Event, None, Job]:
    """Prepare the run up to its first step."""
    job = yield from prepare(config, roots)
    if has_fitted_initial_head(config, head_kept=job.head_kept):
        yield from fit_probe(job, LostImages(job), config.init_seed)
    return job


def suggest_rate(rates: list[float], losses: list[float]) -> float | None:
    """Return the suggested rate, rounded to one digit.

    It is None where the loss did not fall by a twentieth.
    """
    lowest = int(np.argmin(losses))
    if losses[lowest] > 0.95 * losses[0] or lowest < 2:
        return None
    slope = np.gradient(np.array(losses[: lowest + 1]), np.log(rates[: lowest + 1]))
    rate = min(rates[lowest] / 10, rates[int(np.argmin(slope))])
    return float(f"{rate:.0e}")


def _raise_rate(job: Job) -> Work[tuple[list[float], list[float]]]:
    config, rule, scale = job.config, make_step_rule(job), make_loss_scale(job.device)
    apply_strategy(job.strategy, job.network.stages, job.network.model, config.epochs)
    optimizer = make_optimizer(
        config, job.strategy, job.network.stages, job.network.model, job.low_rank
    )
    rates: list[float] = []
    losses: list[float] = []
    smoothed_sum = 0.0
    for step, (rows, inputs) in enumerate(_repeat_batches(job)):
        rate = _LOWEST * (_HIGHEST / _LOWEST) ** (step / (_STEPS - 1))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["base_lr"] / config.learning_rate
        labels = job.get_targets(rows)
        result = train_step(job.forward, inputs, labels, optimizer, job.device, step, rule, scale)
        loss = result.loss.item()
        if not math.isfinite(loss) or (result.skipped.item() and not scale):
            break
        smoothed_sum = _SMOOTHING * smoothed_sum + (1 - _SMOOTHING) * loss
        smoothed = smoothed_sum / (1 - _SMOOTHING ** (step + 1))
        rates.append(rate)
        losses.append(smoothed)
        yield Step(step + 1, _STEPS, "rates")
        if smoothed > _DIVERGED * min(losses):
            break
    return rates, losses


def _repeat_batches(job: Job) -> Inputs:
    """Yield batches of as many epochs as the test needs."""
    epoch, num_batches = 1, 0
    while num_batches < _STEPS:
        batches = job.training_batches(epoch)[: _STEPS - num_batches]
        yield from job.training_inputs(batches, epoch)
        num_batches, epoch = num_batches + len(batches), epoch + 1
