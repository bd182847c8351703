"""Outputs of a network, or of a part of it, for decoded images prepared as *Predict* does."""

from collections.abc import Callable

import numpy as np
import torch

from finetune_core.data.pixels import Pixels
from finetune_core.models.catalogue import BackboneInfo
from finetune_core.training.data_pipeline.batches import (
    center_crop,
    normalize,
    prefetch,
    split_batches,
)
from finetune_core.work import Step, Work

_BATCH = 32

# From a batch of images, float32 [n, 3, size, size], to its outputs, such as logits [n, classes].
OutputFunction = Callable[[torch.Tensor], np.ndarray]


def compute_outputs(
    pixels: Pixels,
    rows: np.ndarray,
    info: BackboneInfo,
    size: int,
    answer: OutputFunction,
    phase: str,
) -> Work[np.ndarray]:
    """Compute the outputs for the images of these rows, ``[len(rows), …]``.

    Args:
        pixels: Decoded images by index.
        rows: int ``[n]``, indices into ``pixels``.
        info: The backbone, whose mean and standard deviation normalise the images.
        size: Side of the centre crop, pixels.
        answer: Function of a batch of images, float32 ``[n, 3, size, size]``, that returns its
            outputs, such as logits ``[n, classes]``.
        phase: Phase of the steps.

    Yields:
        Steps that count images.
    """

    def batch(batch_rows: np.ndarray) -> torch.Tensor:
        return normalize(center_crop(pixels.batch(batch_rows), size), info.mean, info.std)

    outputs = []
    for _, inputs in prefetch(batch, split_batches(rows, _BATCH)):
        outputs.append(answer(inputs))
        yield Step(sum(map(len, outputs)), len(rows), phase)
    return np.concatenate(outputs)
