"""Loss scaling for fp16 (Micikevicius et al. 2018).

Gradients of a scaled loss have fewer values that are too small for the format.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from finetune_core.training.devices.device import Device

_FIRST, _GROWTH, _BACKOFF, _PATIENCE = 2.0**16, 2.0, 0.5, 2000  # as in torch.amp.GradScaler


@dataclass(frozen=True)
class LossScale:
    """A factor that halves where a gradient overflows, and doubles after 2000 steps without.

    All of it stays on the device.

    Attributes:
        factor: float32 ``[]``.
        steps: int32 ``[]``: steps since the factor last changed.
    """

    factor: torch.Tensor
    steps: torch.Tensor

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Tensors of the scale by name."""
        return {"factor": self.factor, "steps": self.steps}

    def unscale(self, gradients: Sequence[torch.Tensor]) -> None:
        """Divide gradients by the factor, in place."""
        torch._foreach_mul_(list(gradients), self.factor.reciprocal())

    def update(self, skipped: torch.Tensor) -> None:
        """Adapt the factor after a step.

        Args:
            skipped: float32 ``[]``: 1 where the step's gradient was not finite, else 0.
        """
        torch._amp_update_scale_(self.factor, self.steps, skipped, _GROWTH, _BACKOFF, _PATIENCE)


def make_loss_scale(device: Device) -> LossScale | None:
    """Return a run's initial loss scale, or None where the device's precision needs none."""
    if device.precision != "fp16":
        return None
    torch_device = device.torch_device
    return LossScale(
        torch.full((), _FIRST, device=torch_device),
        torch.zeros((), dtype=torch.int32, device=torch_device),
    )
