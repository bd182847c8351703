"""Moving average of a network's weights (Polyak & Juditsky 1992).

Where a run asks for it, the average is what is evaluated and kept.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


class WeightEMA:
    """The average of tensors that change.

    Attributes:
        tensors: Averages by name. Tensors of integers hold the latest values.
        steps: Number of steps that went into the average, skipped ones included.
    """

    def __init__(self, changing: Mapping[str, torch.Tensor], decay: float) -> None:
        self._live = dict(changing)
        self.tensors = {name: tensor.detach().clone() for name, tensor in changing.items()}
        self.steps = 0
        self._decay = decay

    def update(self, skipped: torch.Tensor | None = None) -> None:
        """Add a step's weights. The first ones count for more, so that the start is soon forgotten.

        Args:
            skipped: float32 ``[]``, on the device: where it is 1, the average stays as it is.
        """
        self.steps += 1
        decay = min(self._decay, self.steps / (9 + self.steps))
        live = self._live
        averaged = [name for name, tensor in self.tensors.items() if tensor.is_floating_point()]
        counters = [name for name, tensor in self.tensors.items() if not tensor.is_floating_point()]
        averages = [self.tensors[name] for name in averaged]
        latest = [live[name] for name in averaged]
        if skipped is None:
            torch._foreach_lerp_(averages, latest, 1 - decay)
        else:
            steps = torch._foreach_sub(latest, averages)
            torch._foreach_mul_(steps, (1 - decay) * (1 - skipped))
            torch._foreach_add_(averages, steps)
        if counters:
            torch._foreach_copy_(
                [self.tensors[name] for name in counters], [live[name] for name in counters]
            )

    @contextmanager
    def swap_in(self) -> Iterator[None]:
        """Replace the tensors by their averages within the block."""
        saved = {name: tensor.clone() for name, tensor in self._live.items()}
        self._copy(self.tensors)
        try:
            yield
        finally:
            self._copy(saved)

    def _copy(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in self._live.items():
            tensor.copy_(values[name])
