"""Loss scaling for fp16 (Micikevicius et al. 2018): gradients of a loss times a factor, of which fewer are too small for the format."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from finetune_core.training.device import Device

_FIRST, _GROWTH, _BACKOFF, _PATIENCE = 2.0**16, 2.0, 0.5, 2000  # as in torch.amp.GradScaler


@dataclass(frozen=True)
class LossScale:
    """A factor that halves where a gradient overflows, and doubles after 2000 steps without. All of it stays on the device.

    Attributes:
        factor: float32 ``[]``.
        steps: int32 ``[]``: since it last changed.
    """

    factor: torch.Tensor
    steps: torch.Tensor

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """What it consists of, by name."""
        return {"factor": self.factor, "steps": self.steps}

    def unscale(self, gradients: Sequence[torch.Tensor]) -> None:
        """Divide the factor out again, in place."""
        torch._foreach_mul_(list(gradients), self.factor.reciprocal())

    def update(self, skipped: torch.Tensor) -> None:
        """Learn from a step; ``skipped``, float32 ``[]``, is 1 where its gradient was not finite, else 0."""
        torch._amp_update_scale_(self.factor, self.steps, skipped, _GROWTH, _BACKOFF, _PATIENCE)


def loss_scale(device: Device) -> LossScale | None:
    """The one that a run begins with; None where the device's precision needs none."""
    if device.precision != "fp16":
        return None
    where = device.torch_device
    return LossScale(
        torch.full((), _FIRST, device=where), torch.zeros((), dtype=torch.int32, device=where)
    )
