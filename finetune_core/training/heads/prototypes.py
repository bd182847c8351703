"""Nearest class mean of normalised features as a linear head (SimpleShot's L2N, Wang et al. 2019).

SimpleShot compares unit vectors with the means of each class's unit vectors. Here the means are
brought to unit length, too: then the nearest one is that of the largest cosine, and the length of
what is compared does not matter, so a linear layer predicts the same. Its probabilities depend on
that length, and on one scale, which cross-validation chooses within the training images.

Features are not centred. SimpleShot centres by the mean of its base classes, which Thaw lacks, and
the mean of the training images follows the classes' shares. Measured with EfficientNet-Lite0 (96
pixels; six random draws of training images; percent of the other images), with 1, 5 and 30 images
per class, and 30 or 4 of them (a quarter of the classes have 30):

===========================  ======================  ======================  ======================
accuracy                     digits                  letters of 59 fonts     cut-outs of 25 photos
===========================  ======================  ======================  ======================
cosine                       51.9  76.1  82.9  72.4  51.6  71.7  81.8  68.9  66.9  82.0  86.4  80.0
L2N, Euclidean               51.9  76.1  83.0  72.3  51.6  71.9  81.8  69.1  66.9  81.8  86.4  78.8
cosine, centred              53.2  75.2  82.0  71.6  48.3  67.4  78.6  66.2  64.1  78.9  83.8  78.6
scikit-learn NearestCentroid 50.4  74.8  81.8  70.6  45.7  64.4  75.3  60.7  51.5  75.7  80.9  73.9
===========================  ======================  ======================  ======================
"""

import numpy as np
import torch
from torch.nn.functional import cross_entropy, normalize

from finetune_core.training.events import Candidate
from finetune_core.training.heads.folds import stratified_folds
from finetune_core.training.heads.logistic import Choice, Linear
from finetune_core.work import Step, Work

# Scales of the logits, relative to the mean length of a feature.
SCALES = tuple(10 ** (quarter / 4) for quarter in range(9))
_FALLBACK = 10.0  # where there are too few images to choose by


def fit_prototypes(
    features: torch.Tensor, labels: torch.Tensor, sets: np.ndarray, classes: int, seed: int
) -> Work[tuple[Linear, Choice]]:
    """Return class means as a linear head, with the best scale of its logits.

    The best scale predicts held-out training images with the lowest cross-entropy.

    Args:
        features: float32 ``[n, d]``, on the device that computes.
        labels: int64 ``[n]``, on the same device.
        sets: int ``[n]``, equal for near-duplicates.
        classes: Number of classes.
        seed: Seed of the folds.

    Yields:
        Steps of the phase ``choose``, which count folds.
    """
    folds = stratified_folds(labels.cpu().numpy(), sets, seed, fewest=2)
    logits, held_out_labels = [], []
    for done, (fit, out) in enumerate(folds):
        yield Step(done, len(folds), "choose")
        inside, outside = (torch.from_numpy(rows).to(labels.device) for rows in (fit, out))
        logits.append(
            class_means(features[inside], labels[inside], classes).logits(features[outside])
        )
        held_out_labels.append(labels[outside])
    candidates = _score_scales(torch.cat(logits), torch.cat(held_out_labels)) if folds else ()
    chosen = min(candidates, key=lambda one: one["loss"])["value"] if candidates else _FALLBACK
    head = class_means(features, labels, classes)
    return Linear(chosen * head.weight, chosen * head.bias), Choice(
        chosen, candidates, len(labels), len(folds)
    )


def class_means(features: torch.Tensor, labels: torch.Tensor, classes: int) -> Linear:
    """Return the head at a scale of 1.

    Its logits are cosines times the length of a feature, relative to the mean length. A class
    without images gets a logit below all others.
    """
    lengths, unit = features.norm(dim=1), normalize(features)
    weight = normalize(
        torch.zeros(classes, unit.shape[1], device=unit.device).index_add(0, labels, unit)
    )
    mean_length = lengths.mean().clamp(min=1e-12)
    empty = torch.bincount(labels, minlength=classes) == 0
    return Linear(weight / mean_length, torch.where(empty, -2 * lengths.max() / mean_length, 0.0))


def _score_scales(logits: torch.Tensor, labels: torch.Tensor) -> tuple[Candidate, ...]:
    accuracy = float((logits.argmax(1) == labels).float().mean())
    return tuple(
        {"value": scale, "loss": float(cross_entropy(scale * logits, labels)), "accuracy": accuracy}
        for scale in SCALES
    )
