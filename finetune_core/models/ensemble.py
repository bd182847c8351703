"""Several networks for the same classes as one, which answers the mean of their probabilities."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import log_softmax, logsumexp
from torch import nn

from finetune_core.models.catalogue import BackboneInfo
from finetune_core.models.network import Network


def mean_log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Logarithm of the mean probabilities, float64 ``[images, classes]``, of networks ``[networks, images, classes]``.

    Softmax of it is the mean itself, so it stands wherever a network's logits do. The order of the networks changes nothing.
    """
    # sums depend on the order of their terms
    ordered = np.sort(log_softmax(logits.astype(np.float64), axis=2), axis=0)
    mean: np.ndarray = logsumexp(ordered, axis=0) - np.log(len(logits))
    return mean


class Ensemble(nn.Module):
    """Images ``[n, 3, size, size]``, normalised as for the first network, -> logarithm of the mean probabilities ``[n, classes]``."""

    def __init__(self, networks: Sequence[nn.Module], infos: Sequence[BackboneInfo]) -> None:
        """
        Args:
            infos: of the networks' backbones: each gets the images as it wants them normalised.
        """
        super().__init__()
        self.members = nn.ModuleList(networks)
        mean, std = _colours(infos[0])
        self.renormalised = frozenset(
            at
            for at, one in enumerate(infos)
            if (one.mean, one.std) != (infos[0].mean, infos[0].std)
        )
        for at in self.renormalised:
            own_mean, own_std = _colours(infos[at])
            self.register_buffer(f"scale_{at}", (std / own_std).float())
            self.register_buffer(f"shift_{at}", ((mean - own_mean) / own_std).float())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        answers = [
            member(self._seen(images, at)).float().log_softmax(dim=1)
            for at, member in enumerate(self.members)
        ]
        return torch.stack(answers).logsumexp(dim=0) - math.log(len(answers))

    def _seen(self, images: torch.Tensor, at: int) -> torch.Tensor:
        if at not in self.renormalised:
            return images
        return images * self.get_buffer(f"scale_{at}") + self.get_buffer(f"shift_{at}")


def _colours(info: BackboneInfo) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation, float64 ``[3, 1, 1]``."""
    mean, std = (
        torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (info.mean, info.std)
    )
    return mean, std


def joined(networks: Sequence[Network]) -> Network:
    """One network of several, whose images are cropped and resized alike. Their models are shared.

    It has neither stages nor a head of its own: these are its ``members``'.
    """
    first = networks[0]
    model = Ensemble([one.model for one in networks], [one.info for one in networks]).eval()
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
