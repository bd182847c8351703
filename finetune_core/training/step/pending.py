"""Steps whose numbers are still on the device.

They are read back together: each read waits for everything that the device has to do.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from finetune_core.training.devices.device import Device
from finetune_core.training.devices.ranks import ALONE, Ranks
from finetune_core.training.events import StageMeasures
from finetune_core.training.step.compute import StepResult
from finetune_core.training.step.movement import Measurement

_READ_BACK_SECONDS = 0.25
# Below this scale, gradients overflow for another reason.
_SMALLEST_SCALE = 1.0


def seconds_between_reads(device: Device) -> float:
    """Return how long steps may go unread.

    It is 0 on a processor, where nothing runs ahead.
    """
    return 0.0 if device.kind == "cpu" else _READ_BACK_SECONDS


@dataclass(frozen=True)
class PendingStep:
    """A step that was queued on the device.

    It holds only what is to be read of it, because many steps may wait.

    Attributes:
        step: Counted from 1 within its epoch.
        labels: int64 ``[n]``: labels of the whole batch.
        learning_rate: Learning rate of the step.
        numbers: float32 ``[4]``: its loss, gradient norm, whether it was skipped, and the loss
            scale.
        predicted: int64: predicted classes of this rank's share of the batch.
        micro_batch: Images that went through the network at a time.
        memory_short: Whether fewer images than requested went through at a time.
        measured: Measurements of the stages, in the few steps that have them.
    """

    step: int
    labels: np.ndarray
    learning_rate: float
    numbers: torch.Tensor
    predicted: torch.Tensor
    micro_batch: int
    memory_short: bool
    measured: Measurement | None


@dataclass(frozen=True)
class ReadStep:
    """Numbers of a step.

    Attributes:
        skipped: Whether the gradient was not finite, so that nothing has changed.
        loss_scale: Loss scale after the step. 0 where the loss is not scaled.
        predicted: Predicted classes, int64 ``[n]``.
    """

    loss: float
    gradient_norm: float
    skipped: bool
    loss_scale: float
    predicted: np.ndarray
    stages: StageMeasures | None

    @property
    def has_diverged(self) -> bool:
        """True if the loss is not finite, or the gradient at a small loss scale is not."""
        return not math.isfinite(self.loss) or (self.skipped and self.loss_scale < _SMALLEST_SCALE)


def make_pending_step(
    step: int,
    labels: np.ndarray,
    learning_rate: float,
    result: StepResult,
    memory_short: bool,
    measured: Measurement | None,
) -> PendingStep:
    """Return a step that is done, or will be, to be read back later."""
    numbers = torch.stack([result.loss, result.gradient_norm, result.skipped, result.loss_scale])
    return PendingStep(
        step,
        labels,
        learning_rate,
        numbers,
        result.logits.argmax(1),
        result.micro_batch,
        memory_short,
        measured,
    )


def read_back(
    pending: Sequence[PendingStep], ranks: Ranks = ALONE
) -> Iterator[tuple[PendingStep, ReadStep]]:
    """Wait for the device and read the results of each step.

    All ranks have taken the same steps.
    """
    if not pending:
        return
    numbers = torch.stack([each.numbers for each in pending]).tolist()
    predicted = torch.cat([each.predicted for each in pending]).cpu().numpy()
    ends = np.cumsum([len(each.predicted) for each in pending])
    gathered = ranks.all_gather(np.split(predicted, ends[:-1]))
    for each, (loss, norm, skipped, scale), shares in zip(
        pending, numbers, zip(*gathered, strict=True), strict=True
    ):
        stages = each.measured.read() if each.measured and not skipped else None
        yield each, ReadStep(loss, norm, bool(skipped), scale, np.concatenate(shares), stages)
