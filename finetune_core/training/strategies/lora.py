"""LoRA (Hu et al. 2021): low-rank updates of weight matrices.

A weight matrix moves by a product of two thin ones, ``W = W0 + alpha / rank · B · A``, and only A
and B train.

The network always holds W itself. A step takes the gradient of W, however a module uses it, and the
chain rule turns it into those of A and B. (``nn.MultiheadAttention`` never calls its output
projection, and other modules read a layer's weight past the layer.) After the step W is computed
again. So validation, predictions and exports see only usual weights under their usual names.
"""

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from finetune_core.models.network import Network
from finetune_core.training.strategies.stage_plan import Strategy, factored_matrices

# Devices that compute a matrix product to the same bits each time.
_REPEATABLE = ("cpu",)
# Relative to the largest weight: two orders of summation may differ by this much in fp32.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Factors:
    """Low-rank update of one weight.

    Attributes:
        weight: The network's own parameter, which holds W.
        start: W0, ``[rows, columns]``, on the weight's device.
        down: A, ``[rank, columns]``.
        up: B, ``[rows, rank]``.
        scale: Factor of their product.
    """

    weight: nn.Parameter
    start: torch.Tensor
    down: nn.Parameter
    up: nn.Parameter
    scale: float

    def compute_weight(self) -> torch.Tensor:
        """Return W in the weight's shape."""
        return torch.addmm(self.start, self.up, self.down, alpha=self.scale).view_as(self.weight)

    def is_merged(self) -> bool:
        """Return whether the network's weight is W, to rounding where products may not repeat."""
        merged = self.compute_weight()
        if self.weight.device.type in _REPEATABLE:
            return torch.equal(self.weight, merged)
        error = (self.weight - merged).abs().max()
        return bool(error <= _ROUNDING * merged.abs().max())

    def convert_gradient(self) -> None:
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
    """Factors of a network, by the name of the weight that they change.

    It is empty where the network's strategy has none.
    """

    factors: Mapping[str, Factors] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.factors)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """A and B themselves, by their names in checkpoints."""
        return {
            f"{name}.{kind}": tensor.detach()
            for name, one in self.factors.items()
            for kind, tensor in (("lora_A", one.down), ("lora_B", one.up))
        }

    def initial_factors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the factors A of ``tensors`` and B = 0, which change no weight.

        Between these and ``tensors`` lie the factors of all weights on the straight line from W0 to
        W: ``W0 + coefficient · scale · B · A`` is ``B`` times the coefficient.
        """
        return {
            name: tensors[name] if name.endswith(".lora_A") else torch.zeros_like(tensors[name])
            for name in self.tensors
        }

    def parameters(self, names: Mapping[str, object]) -> Iterator[nn.Parameter]:
        """Yield the parameters that train for the weights of these names."""
        for name in names:
            if name in self.factors:
                yield from (self.factors[name].down, self.factors[name].up)

    def clear_gradients(self) -> None:
        """Clear the gradients of the merged weights, which no optimizer knows."""
        for one in self.factors.values():
            one.weight.grad = None

    @torch.no_grad()
    def convert_gradients(self) -> None:
        """Turn the gradients of the merged weights into those of their factors."""
        for one in self.factors.values():
            one.convert_gradient()

    @torch.no_grad()
    def merge(self) -> None:
        """Write the merged weights into the network."""
        for one in self.factors.values():
            one.weight.copy_(one.compute_weight())

    @torch.no_grad()
    def find_unmerged(self) -> list[str]:
        """Return the names of the weights that differ from their start plus their factors.

        A processor computes them again to the last bit. Elsewhere the sum may be rounded otherwise.
        """
        return [name for name, one in self.factors.items() if not one.is_merged()]


NONE = LowRank()


def make_low_rank(network: Network, strategy: Strategy, seed: int) -> LowRank:
    """Return the initial factors that a strategy has for a network, on its device.

    A is random (Kaiming-uniform) and B zero, so that no weight is changed yet.
    """
    return LowRank(
        {
            name: _make_factors(network, name, plan.rank, plan.scale, seed)
            for stage, plan in zip(network.stages, strategy, strict=True)
            for name in factored_matrices(plan, stage)
        }
    )


def _make_factors(network: Network, name: str, rank: int, scale: float, seed: int) -> Factors:
    weight = network.model.get_parameter(name)
    start = network.pretrained.get_parameter(name).detach().flatten(1)
    rows, columns = start.shape
    rank = min(rank, rows, columns)
    # A generator per weight: its random numbers do not depend on which other weights have factors.
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
    down = nn.init.kaiming_uniform_(torch.empty(rank, columns), math.sqrt(5), generator=generator)
    device = weight.device
    return Factors(
        weight,
        start.to(device),
        nn.Parameter(down.to(device)),
        nn.Parameter(torch.zeros(rows, rank, device=device)),
        scale,
    )
