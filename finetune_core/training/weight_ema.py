"""A moving average of a network's weights (Polyak & Juditsky 1992): what is evaluated and kept, where a run asks for it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from finetune_core.models.weights import put_tensors


class WeightEMA:
    """The average of those tensors of a network that change.

    Attributes:
        tensors: by name; those that are no floating-point numbers are the latest.
        steps: that went into it, skipped ones included.
    """

    def __init__(self, changing: Mapping[str, torch.Tensor], decay: float) -> None:
        self.tensors = {name: tensor.detach().clone() for name, tensor in changing.items()}
        self.steps = 0
        self._decay = decay

    def update(self, model: nn.Module, skipped: torch.Tensor | None = None) -> None:
        """Take a step's weights in; the first ones count for more, so that the start is soon forgotten.

        Args:
            skipped: float32 ``[]``, on the device: where it is 1, the average stays as it is.
        """
        self.steps += 1
        decay = min(self._decay, self.steps / (9 + self.steps))
        now = model.state_dict()
        averaged = [name for name, kept in self.tensors.items() if kept.is_floating_point()]
        counted = [name for name, kept in self.tensors.items() if not kept.is_floating_point()]
        kept, latest = [self.tensors[name] for name in averaged], [now[name] for name in averaged]
        if skipped is None:
            torch._foreach_lerp_(kept, latest, 1 - decay)
        else:
            moves = torch._foreach_sub(latest, kept)
            torch._foreach_mul_(moves, (1 - decay) * (1 - skipped))
            torch._foreach_add_(kept, moves)
        if counted:
            torch._foreach_copy_([self.tensors[name] for name in counted], [now[name] for name in counted])

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """The network with the averaged weights, for as long as the block lasts."""
        now = model.state_dict()
        before = {name: now[name].clone() for name in self.tensors}
        put_tensors(model, self.tensors)
        try:
            yield
        finally:
            put_tensors(model, before)
