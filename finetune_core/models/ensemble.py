"""Several networks combined into one that predicts the mean of their probabilities."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import log_softmax, logsumexp
from torch import nn

from finetune_core.models.catalogue import BackboneInfo
from finetune_core.models.network import Network


def mean_log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the logarithm of the mean probabilities of several networks.

    Softmax of the result is the mean itself, so the result can replace a network's logits. The
    order of the networks does not change it.

    Args:
        logits: array of shape ``[networks, images, classes]``.

    Returns:
        A float64 array of shape ``[images, classes]``.
    """
    # Floating-point sums depend on the order of their terms.
    ordered = np.sort(log_softmax(logits.astype(np.float64), axis=2), axis=0)
    mean: np.ndarray = logsumexp(ordered, axis=0) - np.log(len(logits))
    return mean


class Ensemble(nn.Module):
    """A module that predicts the logarithm of the mean probabilities of its members.

    Input: images ``[n, 3, size, size]``, normalised as for the first network. Output: ``[n,
    classes]``.
    """

    def __init__(self, networks: Sequence[nn.Module], infos: Sequence[BackboneInfo]) -> None:
        """Create an ensemble of networks that share their classes.

        Args:
            networks: the member networks.
            infos: the networks' backbones. Each member gets the images in the normalisation of its
                own backbone.
        """
        super().__init__()
        self.members = nn.ModuleList(networks)
        mean, std = _mean_and_std(infos[0])
        self.renormalised = frozenset(
            index
            for index, info in enumerate(infos)
            if (info.mean, info.std) != (infos[0].mean, infos[0].std)
        )
        for index in self.renormalised:
            own_mean, own_std = _mean_and_std(infos[index])
            self.register_buffer(f"scale_{index}", (std / own_std).float())
            self.register_buffer(f"shift_{index}", ((mean - own_mean) / own_std).float())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logarithm of the members' mean probabilities, ``[n, classes]``."""
        log_probabilities = [
            member(self._renormalise(images, index)).float().log_softmax(dim=1)
            for index, member in enumerate(self.members)
        ]
        return torch.stack(log_probabilities).logsumexp(dim=0) - math.log(len(log_probabilities))

    def _renormalise(self, images: torch.Tensor, index: int) -> torch.Tensor:
        if index not in self.renormalised:
            return images
        return images * self.get_buffer(f"scale_{index}") + self.get_buffer(f"shift_{index}")


def _mean_and_std(info: BackboneInfo) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation as float64 tensors of shape ``[3, 1, 1]``."""
    mean, std = (
        torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (info.mean, info.std)
    )
    return mean, std


def build_ensemble(networks: Sequence[Network]) -> Network:
    """Combine several networks into an ensemble that shares their modules.

    Their images have to be cropped and resized alike. The ensemble itself has neither stages nor a
    head, only its ``members`` have.
    """
    first = networks[0]
    model = Ensemble(
        [network.model for network in networks], [network.info for network in networks]
    ).eval()
    return Network(
        model,
        pretrained=model,
        stages=(),
        heads=(),
        weights_hash=first.weights_hash,
        info=first.info,
        image_size=first.image_size,
        members=tuple(networks),
    )
