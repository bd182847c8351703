"""LoRA (Hu et al. 2021): a weight matrix moves by a product of two thin ones, W = W0 + alpha / rank · B · A, and only A and B train.

The network holds W itself, always. A step takes the gradient of W, however a module uses it (``nn.MultiheadAttention`` never calls its
output projection, others read a layer's weight past it), and the chain rule makes those of A and B of it; after the step W is computed
anew. So validation, predictions and exports see nothing but usual weights under their usual names.
"""

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from finetune_core.models.network import Network
from finetune_core.training.stage_plan import Strategy, factored_matrices

_REPEATABLE = ("cpu",)  # devices that compute a product of matrices to the same bits each time
_ROUNDING = 1e-5  # of the largest weight: what two orders of adding up may differ by in fp32


@dataclass(frozen=True)
class Factors:
    """What is added to one weight.

    Attributes:
        weight: the network's own parameter, which holds W.
        start: W0, ``[rows, columns]``, where the weight is.
        down, up: A, ``[rank, columns]``, and B, ``[rows, rank]``.
        scale: of their product.
    """

    weight: nn.Parameter
    start: torch.Tensor
    down: nn.Parameter
    up: nn.Parameter
    scale: float

    def merged(self) -> torch.Tensor:
        """W, in the weight's shape."""
        return torch.addmm(self.start, self.up, self.down, alpha=self.scale).view_as(self.weight)

    def is_merged(self) -> bool:
        """Return whether the network's weight is W, to rounding where products may not repeat."""
        merged = self.merged()
        if self.weight.device.type in _REPEATABLE:
            return torch.equal(self.weight, merged)
        off = (self.weight - merged).abs().max()
        return bool(off <= _ROUNDING * merged.abs().max())

    def take_gradient(self) -> None:
        """Turn the gradient of W into those of A and B."""
        if self.weight.grad is None:
            self.down.grad = self.up.grad = None
            return
        gradient = self.weight.grad.flatten(1)
        self.down.grad = (self.up.T @ gradient).mul_(self.scale)
        self.up.grad = (gradient @ self.down.T).mul_(self.scale)
        self.weight.grad = None


@dataclass(frozen=True)
class LowRank:
    """The factors of a network, by the name of the weight that they change; none where its strategy has none."""

    factors: Mapping[str, Factors] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.factors)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """A and B themselves, by the names that checkpoints give them."""
        return {
            f"{name}.{kind}": tensor.detach()
            for name, one in self.factors.items()
            for kind, tensor in (("lora_A", one.down), ("lora_B", one.up))
        }

    def at_start(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the factors A of ``tensors`` and B = 0, which change no weight.

        Between these and ``tensors`` lie the factors of all weights on the straight line from W0
        to W: ``W0 + coefficient · scale · B · A`` is ``B`` times the coefficient.
        """
        return {
            name: tensors[name] if name.endswith(".lora_A") else torch.zeros_like(tensors[name])
            for name in self.tensors
        }

    def parameters(self, names: Mapping[str, object]) -> Iterator[nn.Parameter]:
        """What trains for the weights of these names."""
        for name in names:
            if name in self.factors:
                yield from (self.factors[name].down, self.factors[name].up)

    def forget_gradients(self) -> None:
        """Of the merged weights: no optimizer knows them."""
        for one in self.factors.values():
            one.weight.grad = None

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Turn the gradients of the merged weights into those of their factors."""
        for one in self.factors.values():
            one.take_gradient()

    @torch.no_grad()
    def merge(self) -> None:
        """Put into the network what the factors say now."""
        for one in self.factors.values():
            one.weight.copy_(one.merged())

    @torch.no_grad()
    def unmerged(self) -> list[str]:
        """Return the names of the weights that are not what their factors say.

        A processor computes them again to the last bit. Elsewhere the sum may be rounded otherwise.
        """
        return [name for name, one in self.factors.items() if not one.is_merged()]


NONE = LowRank()


def low_rank(network: Network, strategy: Strategy, seed: int) -> LowRank:
    """The factors that a strategy has for a network, where that is: A random (Kaiming-uniform), B zero, so that nothing is changed yet."""
    return LowRank(
        {
            name: _factors(network, name, plan.rank, plan.scale, seed)
            for stage, plan in zip(network.stages, strategy, strict=True)
            for name in factored_matrices(plan, stage)
        }
    )


def _factors(network: Network, name: str, rank: int, scale: float, seed: int) -> Factors:
    weight = network.model.get_parameter(name)
    start = network.pretrained.get_parameter(name).detach().flatten(1)
    rows, columns = start.shape
    rank = min(rank, rows, columns)
    # Each weight's own random numbers: they do not depend on which others have factors.
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
    down = nn.init.kaiming_uniform_(torch.empty(rank, columns), math.sqrt(5), generator=generator)
    there = weight.device
    return Factors(
        weight,
        start.to(there),
        nn.Parameter(down.to(there)),
        nn.Parameter(torch.zeros(rows, rank, device=there)),
        scale,
    )
