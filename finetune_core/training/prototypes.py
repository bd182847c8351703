"""Nearest class mean on centred, normalised features (SimpleShot, Wang et al. 2019), as a linear head.

SimpleShot compares unit vectors with the means of each class's unit vectors. Here the means are brought to unit length, too: then the
nearest one is that of the largest cosine, and the length of what is compared does not matter, so a linear layer predicts the same.
Its probabilities depend on that length, and on one scale, which cross-validation chooses within the training images.
"""

from dataclasses import replace

import numpy as np
import torch
from torch.nn.functional import cross_entropy, normalize

from finetune_core.training.events import Candidate
from finetune_core.training.folds import stratified_folds
from finetune_core.training.logistic import Choice, Linear
from finetune_core.work import Step, Work

SCALES = tuple(
    10 ** (quarter / 4) for quarter in range(9)
)  # of the logits, relative to the usual length of a centred feature
_FALLBACK = 10.0  # where there are too few images to choose by


def prototypes(
    features: torch.Tensor, labels: torch.Tensor, sets: np.ndarray, classes: int, seed: int
) -> Work[tuple[Linear, Choice]]:
    """The head, and the scale of its logits that predicts held-out training images with the lowest cross-entropy.

    Args:
        features: float32 ``[n, d]``. labels: int64 ``[n]``, both on the device that computes. sets: int ``[n]``, equal for near-duplicates.
        seed: of the folds.

    Yields:
        Steps of the phase ``choose``, which count folds.
    """
    folds = stratified_folds(labels.cpu().numpy(), sets, seed, fewest=2)
    logits, held = [], []
    for done, (fit, out) in enumerate(folds):
        yield Step(done, len(folds), "choose")
        inside, outside = (torch.from_numpy(rows).to(labels.device) for rows in (fit, out))
        logits.append(
            class_means(features[inside], labels[inside], classes).logits(features[outside])
        )
        held.append(labels[outside])
    candidates = _scored(torch.cat(logits), torch.cat(held)) if folds else ()
    chosen = min(candidates, key=lambda one: one["loss"])["value"] if candidates else _FALLBACK
    head = class_means(features, labels, classes)
    return Linear(chosen * head.weight, chosen * head.bias), Choice(
        chosen, candidates, len(labels), len(folds)
    )


def class_means(features: torch.Tensor, labels: torch.Tensor, classes: int) -> Linear:
    """The head at a scale of 1: logits are cosines times the length of a centred feature, relative to what is usual.

    A class without images gets a logit below all others.
    """
    centre = features.mean(0)
    lengths = (features - centre).norm(dim=1)
    unit = normalize(features - centre)
    weight = normalize(
        torch.zeros(classes, unit.shape[1], device=unit.device).index_add(0, labels, unit)
    )
    usual = lengths.mean().clamp(min=1e-12)
    head = Linear(weight / usual, -(weight @ centre) / usual)
    empty = torch.bincount(labels, minlength=classes) == 0
    return replace(head, bias=torch.where(empty, -2 * lengths.max() / usual, head.bias))


def _scored(logits: torch.Tensor, labels: torch.Tensor) -> tuple[Candidate, ...]:
    accuracy = float((logits.argmax(1) == labels).float().mean())
    return tuple(
        {"value": scale, "loss": float(cross_entropy(scale * logits, labels)), "accuracy": accuracy}
        for scale in SCALES
    )
