"""What a network, or a part of it, makes of decoded images, prepared as *Predict* does."""

from collections.abc import Callable

import numpy as np
import torch

from finetune_core.data.pixels import Pixels
from finetune_core.models.catalogue import BackboneInfo
from finetune_core.training.batches import evaluated, in_order, normalised, prefetched
from finetune_core.work import Step, Work

_BATCH = 32

Answer = Callable[[torch.Tensor], np.ndarray]  # float32 [n, 3, size, size] -> [n, …]: logits, say


def answers(
    pixels: Pixels, rows: np.ndarray, info: BackboneInfo, size: int, answer: Answer, phase: str
) -> Work[np.ndarray]:
    """What is answered for the images of these rows, ``[len(rows), …]``."""

    def batch(some: np.ndarray) -> torch.Tensor:
        return normalised(evaluated(pixels.batch(some), size), info.mean, info.std)

    found = []
    for _, inputs in prefetched(batch, in_order(rows, _BATCH)):
        found.append(answer(inputs))
        yield Step(sum(map(len, found)), len(rows), phase)
    return np.concatenate(found)
