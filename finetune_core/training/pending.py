"""Steps whose numbers are still on the device. They are read back together: each read waits for all that the device has to do."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from finetune_core.training.compute import StepResult
from finetune_core.training.device import Device
from finetune_core.training.events import StageMeasures
from finetune_core.training.movement import Measured

_READ_BACK_SECONDS = 0.25
_SMALLEST_SCALE = 1.0  # below it, it is not the scale that makes gradients overflow


def seconds_between_reads(device: Device) -> float:
    """How long steps may go unread: on a processor, where nothing runs ahead, not at all."""
    return 0.0 if device.kind == "cpu" else _READ_BACK_SECONDS


@dataclass(frozen=True)
class PendingStep:
    """A step that was given to the device.

    Attributes:
        step: within its epoch, counted from 1.
        labels: int64 ``[n]``.
        learning_rate: of the step.
        memory_short: whether fewer images than asked went through at a time.
        measured: of the stages, in the few steps where they are.
    """

    step: int
    labels: np.ndarray
    learning_rate: float
    result: StepResult
    memory_short: bool
    measured: Measured | None


@dataclass(frozen=True)
class ReadStep:
    """A step's numbers.

    Attributes:
        skipped: whether the gradient was not finite, so that nothing has changed.
        loss_scale: after the step; 0 where the loss is not scaled.
        predicted: int64 ``[n]``.
    """

    loss: float
    gradient_norm: float
    skipped: bool
    loss_scale: float
    predicted: np.ndarray
    stages: StageMeasures | None

    @property
    def has_diverged(self) -> bool:
        """Whether loss or gradient are not finite for another reason than a loss scale that is too large."""
        return not math.isfinite(self.loss) or (self.skipped and self.loss_scale < _SMALLEST_SCALE)


def read_back(pending: Sequence[PendingStep]) -> Iterator[tuple[PendingStep, ReadStep]]:
    """Wait for the device, and read what came of each step."""
    if not pending:
        return
    results = [each.result for each in pending]
    numbers = torch.stack([torch.stack([one.loss, one.gradient_norm, one.skipped, one.loss_scale]) for one in results]).tolist()
    predicted = torch.cat([one.logits.argmax(1) for one in results]).cpu().numpy()
    ends = np.cumsum([len(one.logits) for one in results])
    for each, (loss, norm, skipped, scale), mine in zip(pending, numbers, np.split(predicted, ends[:-1]), strict=True):
        stages = each.measured.read() if each.measured and not skipped else None
        yield each, ReadStep(loss, norm, bool(skipped), scale, mine, stages)
