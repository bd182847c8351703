"""Weighted k-nearest neighbours on frozen features, as DINO is evaluated (Caron et al. 2021).

The head holds the training images' features.
"""

from dataclasses import replace

import torch
from torch import nn
from torch.nn.functional import normalize

from finetune_core.models.network import Network

NEIGHBOURS, TEMPERATURE = 20, 0.07
# Share of the votes that a class without neighbours gets.
_SMALLEST = 1e-6


class NearestNeighbours(nn.Module):
    """Head that turns features ``[n, d]`` into log shares of votes ``[n, classes]``.

    The ``NEIGHBOURS`` training images of the largest cosine vote for their class with a weight of
    ``exp(cosine / TEMPERATURE)``.
    """

    features: torch.Tensor
    labels: torch.Tensor

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, classes: int) -> None:
        """Store normalised features.

        Args:
            features: float32 ``[images, d]``.
            labels: int64 ``[images]``.
            classes: Number of classes.
        """
        super().__init__()
        self.classes = classes
        self.register_buffer("features", normalize(features))
        self.register_buffer("labels", labels)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the log of each class's share, given features ``[n, d]``."""
        return self.log_shares(normalize(inputs) @ self.features.T)

    def log_shares(self, cosines: torch.Tensor) -> torch.Tensor:
        """Return the log of each class's share, given cosines ``[n, images]``."""
        nearest = cosines.topk(min(NEIGHBOURS, cosines.shape[1]))
        weights = (nearest.values / TEMPERATURE).softmax(dim=1)
        shares = torch.zeros(len(cosines), self.classes, dtype=weights.dtype, device=weights.device)
        return (
            shares.scatter_add(1, self.labels[nearest.indices], weights).clamp(min=_SMALLEST).log()
        )

    def leave_one_out_logits(self, chunk_size: int = 1024) -> torch.Tensor:
        """Return logits of each training image, computed from all other training images.

        Args:
            chunk_size: Number of images that are compared at a time.
        """
        logits = []
        for start in range(0, len(self.features), chunk_size):
            cosines = self.features[start : start + chunk_size] @ self.features.T
            cosines.diagonal(start).fill_(-torch.inf)
            logits.append(self.log_shares(cosines))
        return torch.cat(logits)


def replace_head(network: Network, head: NearestNeighbours) -> Network:
    """Replace the linear head of a network by this head.

    The model stays the same. Its last stage then holds features and labels.
    """
    (path,) = network.heads
    network.model.set_submodule(path, head)
    last_stage = network.stages[-1]
    sizes = {
        name: count for name, count in last_stage.sizes.items() if not name.startswith(f"{path}.")
    }
    buffers = (*last_stage.buffers, *(f"{path}.{name}" for name, _ in head.named_buffers()))
    last_stage = replace(
        last_stage,
        parameters=tuple(sizes),
        buffers=buffers,
        parameter_count=sum(sizes.values()),
        sizes=sizes,
    )
    return replace(network, stages=(*network.stages[:-1], last_stage))


def count_neighbours(network: Network) -> int:
    """Return how many training images the head holds, or 0 for another kind of head."""
    head = network.model.get_submodule(network.heads[0])
    return len(head.labels) if isinstance(head, NearestNeighbours) else 0


def count_features(network: Network, classes: int) -> int:
    """Return how many features per image a head of neighbours would hold.

    Args:
        network: A network with a linear head.
        classes: Number of its classes.
    """
    return network.stages[-1].sizes[f"{network.heads[0]}.weight"] // classes


def add_empty_neighbours(network: Network, images: int, width: int, classes: int) -> Network:
    """Replace the head of a network by one that is to be filled from a checkpoint."""
    return replace_head(
        network,
        NearestNeighbours(
            torch.zeros(images, width), torch.zeros(images, dtype=torch.int64), classes
        ),
    )
