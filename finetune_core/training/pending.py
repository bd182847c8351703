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
from finetune_core.training.ranks import ALONE, Ranks

_READ_BACK_SECONDS = 0.25
_SMALLEST_SCALE = 1.0  # below it, it is not the scale that makes gradients overflow


def seconds_between_reads(device: Device) -> float:
    """How long steps may go unread: on a processor, where nothing runs ahead, not at all."""
    return 0.0 if device.kind == "cpu" else _READ_BACK_SECONDS


@dataclass(frozen=True)
class PendingStep:
    """A step that was given to the device: what is to be read of it, and no more, because many may wait.

    Attributes:
        step: within its epoch, counted from 1.
        labels: int64 ``[n]``: of the whole batch.
        learning_rate: of the step.
        numbers: float32 ``[4]``: its loss, gradient norm, whether it was skipped, and the loss scale.
        predicted: int64: of this rank's share of it.
        micro_batch: images that went through the network at a time.
        memory_short: whether fewer images than asked went through at a time.
        measured: of the stages, in the few steps where they are.
    """

    step: int
    labels: np.ndarray
    learning_rate: float
    numbers: torch.Tensor
    predicted: torch.Tensor
    micro_batch: int
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


def pending_step(
    step: int,
    labels: np.ndarray,
    learning_rate: float,
    done: StepResult,
    memory_short: bool,
    measured: Measured | None,
) -> PendingStep:
    """A step that is done, or will be."""
    numbers = torch.stack([done.loss, done.gradient_norm, done.skipped, done.loss_scale])
    return PendingStep(
        step,
        labels,
        learning_rate,
        numbers,
        done.logits.argmax(1),
        done.micro_batch,
        memory_short,
        measured,
    )


def read_back(
    pending: Sequence[PendingStep], ranks: Ranks = ALONE
) -> Iterator[tuple[PendingStep, ReadStep]]:
    """Wait for the device, and read what came of each step; all ranks have taken the same ones."""
    if not pending:
        return
    numbers = torch.stack([each.numbers for each in pending]).tolist()
    predicted = torch.cat([each.predicted for each in pending]).cpu().numpy()
    ends = np.cumsum([len(each.predicted) for each in pending])
    words = ranks.meet(np.split(predicted, ends[:-1]))
    for each, (loss, norm, skipped, scale), shares in zip(
        pending, numbers, zip(*words, strict=True), strict=True
    ):
        stages = each.measured.read() if each.measured and not skipped else None
        yield each, ReadStep(loss, norm, bool(skipped), scale, np.concatenate(shares), stages)
