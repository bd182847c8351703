"""Weighted k-nearest neighbours on frozen features, as DINO is evaluated (Caron et al. 2021): a head that holds the training images' features."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn.functional import normalize

from finetune_core.models.network import Network

NEIGHBOURS, TEMPERATURE = 20, 0.07
_SMALLEST = 1e-6  # share of the votes of a class that no neighbour has


class NearestNeighbours(nn.Module):
    """Features ``[n, d]`` -> the log of each class's share of the votes ``[n, classes]``.

    The ``NEIGHBOURS`` training images of the largest cosine vote for their class with a weight of ``exp(cosine / TEMPERATURE)``.
    """

    features: torch.Tensor
    labels: torch.Tensor

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, classes: int) -> None:
        """
        Args:
            features: float32 ``[images, d]``. labels: int64 ``[images]``.
        """
        super().__init__()
        self.classes = classes
        self.register_buffer("features", normalize(features))
        self.register_buffer("labels", labels)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.log_shares(normalize(inputs) @ self.features.T)

    def log_shares(self, cosines: torch.Tensor) -> torch.Tensor:
        """Of cosines ``[n, images]``."""
        nearest = cosines.topk(min(NEIGHBOURS, cosines.shape[1]))
        weights = (nearest.values / TEMPERATURE).softmax(dim=1)
        shares = torch.zeros(len(cosines), self.classes, dtype=weights.dtype, device=weights.device)
        return (
            shares.scatter_add(1, self.labels[nearest.indices], weights).clamp(min=_SMALLEST).log()
        )

    def without_themselves(self, part: int = 1024) -> torch.Tensor:
        """What the training images are taken for by all the others."""
        found = []
        for start in range(0, len(self.features), part):
            cosines = self.features[start : start + part] @ self.features.T
            cosines.diagonal(start).fill_(-torch.inf)
            found.append(self.log_shares(cosines))
        return torch.cat(found)


def with_neighbours(network: Network, head: NearestNeighbours) -> Network:
    """The network with that head in the place of its linear one; the same model, whose last stage holds features and labels."""
    (path,) = network.heads
    network.model.set_submodule(path, head)
    last = network.stages[-1]
    sizes = {name: count for name, count in last.sizes.items() if not name.startswith(f"{path}.")}
    buffers = (*last.buffers, *(f"{path}.{name}" for name, _ in head.named_buffers()))
    last = replace(
        last,
        parameters=tuple(sizes),
        buffers=buffers,
        parameter_count=sum(sizes.values()),
        sizes=sizes,
    )
    return replace(network, stages=(*network.stages[:-1], last))


def neighbours_of(network: Network) -> int:
    """How many training images the head holds; 0 where it is another one."""
    head = network.model.get_submodule(network.heads[0])
    return len(head.labels) if isinstance(head, NearestNeighbours) else 0


def neighbours_width(network: Network, classes: int) -> int:
    """How many features of each training image the head of a network would hold, which has a linear one so far."""
    return network.stages[-1].sizes[f"{network.heads[0]}.weight"] // classes


def with_empty_neighbours(network: Network, images: int, width: int, classes: int) -> Network:
    """The network with a head that is to be filled from a checkpoint."""
    return with_neighbours(
        network,
        NearestNeighbours(
            torch.zeros(images, width), torch.zeros(images, dtype=torch.int64), classes
        ),
    )
