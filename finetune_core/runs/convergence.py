"""Judge whether training was long enough, by one test of a run alone and two against other runs.

A run that stops while it still improves says little about the layers that it trained. Alone, a run
has not converged when its validation loss still falls by more than its noise. A schedule that ends
near zero flattens every curve, so the trend is taken over the sum of the learning rate, not over
epochs. The fall is predicted for another quarter of the training, under the assumption that the
loss continues from the last third as it did from the middle third to the last. Compared with other
runs, a run has not converged when runs with fewer weights to train fit the training images better.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_core.config import RunConfig
from finetune_core.config.run_config import FITTED
from finetune_core.runs.design import features_key, is_baseline
from finetune_core.runs.history import History
from finetune_core.training.step.schedules import learning_rate_factor

FloatArray = NDArray[np.float64]

_FEWEST_EPOCHS = 5
_LAST = 1 / 3  # share of the training whose trend is measured
_MORE = 1 / 4  # share of the training for which the fall is predicted
# A smaller fall is not worth more training: as a share of the validation loss, and in nats.
_SMALLEST_FALL, _FEWEST_NATS = 0.02, 0.01
_PROBE_LEAD = 0.05  # nats of training loss: two fits of the same head differ by less
_SMALLEST_GAP = 0.02  # between the training accuracies of two runs
_LEVEL = 0.05  # of the one-sided t test of the trend
_DEVIATIONS = 2.0  # between the training accuracies of two runs


@dataclass(frozen=True)
class Convergence:
    """Judgement of a run.

    Attributes:
        converged: None if it is unknown.
        reason: the reason as text.
    """

    converged: bool | None
    reason: str


UNKNOWN = Convergence(None, "nothing is known of its training")


def judge_run(config: RunConfig, history: History) -> Convergence:
    """Judge a run by its own curve."""
    if (history.end or {}).get("event") != "RunFinished":
        return Convergence(None, "it has not trained to its end")
    if history.averaged or config.averaged:
        return Convergence(None, "it averages other runs")
    if history.fitted:
        return Convergence(True, "its head is fitted in closed form or to convergence")
    epochs = history.epochs
    if len(epochs) < _FEWEST_EPOCHS:
        return Convergence(None, f"fewer than {_FEWEST_EPOCHS} epochs show no trend")
    if max(row["val_accuracy"] for row in epochs) == 1:
        return Convergence(True, "it classifies every validation image correctly")
    assert history.started is not None
    guess = math.log(len(history.started["classes"]))
    if epochs[-1]["train_loss"] < guess / 2 and epochs[-1]["val_loss"] >= guess:
        return Convergence(
            None, "it fits the training images only, no better than a guess on others"
        )
    spent = accumulate_rates(config, history.started["steps_per_epoch"], len(epochs))
    fall = predict_fall(spent, [row["val_loss"] for row in epochs])
    if fall is None:
        return Convergence(True, "its validation loss falls no more")
    return Convergence(False, "its validation loss still falls")


def judge_together(runs: Sequence[tuple[RunConfig, History]]) -> list[Convergence]:
    """Judge each run by its own curve, and against the other runs."""
    return [
        own if own.converged is False else _judge_beside(run, runs) or own
        for run, own in ((run, judge_run(*run)) for run in runs)
    ]


def accumulate_rates(config: RunConfig, steps_per_epoch: int, epochs: int) -> list[float]:
    """Return the learning rate summed up to the end of each epoch, in epochs at the highest rate.

    The factor of an epoch is that of the step in its middle.
    """
    middles = range(steps_per_epoch // 2, epochs * steps_per_epoch, steps_per_epoch)
    return list(accumulate(learning_rate_factor(config, step, steps_per_epoch) for step in middles))


def predict_fall(spent: Sequence[float], losses: Sequence[float]) -> float | None:
    """Predict by which share the loss would fall if training went on for a quarter more.

    Args:
        spent: the result of ``accumulate_rates``, one value per epoch.
        losses: mean validation loss after each epoch, in nats.

    Returns:
        The share; None if the trend is not larger than its noise, or too small to matter.
    """
    times, values = np.asarray(spent), np.asarray(losses)
    late = times >= times[-1] * (1 - _LAST)
    late[-4:] = True
    trend = _fit_line(times[late], values[late])
    end = float(trend.intercept + trend.slope * times[-1])
    if end <= 0 or trend.slope >= 0:
        return None
    middle = ~late & (times >= times[-1] * (1 - 2 * _LAST))
    slowdown = _compare_slopes(trend.slope, times[middle], values[middle])
    fall = -float(trend.slope) * times[-1] * _MORE * slowdown / end
    is_noise = float(trend.pvalue) / 2 > _LEVEL  # the slope is negative, so half of both sides
    is_small = fall < _SMALLEST_FALL or fall * end < _FEWEST_NATS
    return None if is_noise or is_small else min(float(fall), 1.0)


def _fit_line(times: FloatArray, values: FloatArray) -> Any:
    from scipy import stats  # takes most of a second to import, and Home shows runs without it

    return stats.linregress(times, values)


def _compare_slopes(slope: float, times: FloatArray, values: FloatArray) -> float:
    """Return the share of the earlier slope that is left, at most 1.

    A loss that levels off is expected to go on levelling off.
    """
    if len(times) < 2:
        return 1.0
    before = float(_fit_line(times, values).slope)
    return min(1.0, slope / before) if before < 0 else 1.0


def _judge_beside(
    run: tuple[RunConfig, History], others: Sequence[tuple[RunConfig, History]]
) -> Convergence | None:
    config, history = run
    if not history.epochs or history.end is None:
        return None
    for other, known in others:
        if not _is_comparable(config, other):
            continue
        if config.strategy == "feature_extraction" and is_baseline(other) and known.fitted:
            reason = _falls_behind(history, known)
        else:
            reason = _fits_worse_than(history, known)
        if reason:
            return Convergence(False, reason)
    return None


def _is_comparable(config: RunConfig, other: RunConfig) -> bool:
    """Return whether two runs saw the same training images in the same way."""
    alike = all(
        getattr(config, name) == getattr(other, name) or other.strategy in FITTED
        for name in ("mixup", "cutmix", "label_smoothing", "sampling", "class_weights", "seed")
    )
    plain = config.augmentation == other.augmentation or (
        other.strategy in FITTED and config.augmentation == "none"
    )
    return alike and plain and features_key(config) == features_key(other)


def _falls_behind(history: History, probe: History) -> str:
    """Return a reason if a linear probe on the same features fits better; else "".

    The probe has to be better on training and validation images.
    """
    assert probe.fitted is not None
    loss, fitted = history.epochs[-1]["train_loss"], probe.fitted["train_loss"]
    best = min(row["val_loss"] for row in history.epochs)
    validated = (probe.end or {}).get("val_loss")
    if validated is None or loss <= fitted + _PROBE_LEAD or best <= validated + _FEWEST_NATS:
        return ""
    return (
        f"a linear probe on the same features reaches a training loss of {fitted:.2f}, "
        f"this run {loss:.2f}"
    )


def _fits_worse_than(history: History, other: History) -> str:
    """Return a reason if a run with fewer weights has a higher training accuracy; else ""."""
    if not _has_more_freedom(history, other):
        return ""
    assert history.started is not None
    images = history.started["counts"]["train"]
    own = history.epochs[-1]["train_accuracy"]
    rows = [other.fitted] if other.fitted else other.epochs[-1:]
    if not rows:
        return ""
    theirs = rows[0]["train_accuracy"]
    noise = math.sqrt((own * (1 - own) + theirs * (1 - theirs)) / images)
    if theirs - own <= max(_DEVIATIONS * noise, 1 / images, _SMALLEST_GAP):
        return ""
    return (
        f"a run that trains fewer layers fits {theirs:.0%} of the training images, this one "
        f"{own:.0%}"
    )


def _has_more_freedom(history: History, other: History) -> bool:
    """Return whether this run trains all stages that the other run trains, and more."""
    return _list_trained_stages(other) < _list_trained_stages(history)


def _list_trained_stages(history: History) -> set[str]:
    stages = (history.started or {"stages": []})["stages"]
    return {stage["name"] for stage in stages if stage["trains"]}
