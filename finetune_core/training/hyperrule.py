"""Settings by the size of a data set, in the manner of BiT's HyperRule (Kolesnikov et al. 2020, Big Transfer, section 3.3)."""

import math
from dataclasses import dataclass
from typing import Any

from finetune_core.data.dataset import Dataset
from finetune_core.data.splits import TRAIN

_BATCH = 32
_SMALL, _MEDIUM = 20_000, 500_000  # training images, as in the paper
_STEPS = (500, 10_000, 20_000)
_FEWEST_EPOCHS, _MOST_EPOCHS = 3, 50
_LITTLE_SIDE = 96  # pixels


@dataclass(frozen=True)
class HyperRule:
    """Settings, and why they are what they are, in a sentence or two."""

    settings: dict[str, Any]
    reason: str


def hyperrule(images: int, side: float) -> HyperRule:
    """What to train with.

    The paper trains 500, 10,000 or 20,000 steps of 512 images by SGD at 0.003, divided by ten on the way, without weight decay, and
    blends images (mixup) where there are many. Here a step has 32 images, so that a processor ends in time; the length is rounded
    to whole epochs, 3 to 50; the rate falls to a tenth twice, not three times; images get 128 or 224 pixels, not 128 or 384;
    augmentation is left alone, because only a person knows whether a flipped image still shows the same.

    Args:
        images: that are trained on.
        side: their typical shorter side, pixels.
    """
    size = (images >= _SMALL) + (images >= _MEDIUM)
    epochs = min(_MOST_EPOCHS, max(_FEWEST_EPOCHS, math.ceil(_STEPS[size] * _BATCH / images)))
    word = ("small", "medium", "large")[size]
    pixels = 128 if side < _LITTLE_SIDE else 224
    settings = {
        "optimizer": "sgd",
        "learning_rate": 0.003,
        "schedule": "step",
        "weight_decay": 0.0,
        "batch_size": _BATCH,
        "epochs": epochs,
        "image_size": pixels,
        "mixup": 0.1 if size else 0.0,
    }
    reason = (
        f"{images:,} training images are a {word} data set: {epochs} epochs, about {math.ceil(epochs * images / _BATCH):,} steps of {_BATCH}"
        f"{', with mixup' if size else ''}; images of about {side:.0f} pixels are resized to {pixels}."
    )
    return HyperRule(settings, reason)


def rule_of(dataset: Dataset, fraction: float = 1.0) -> HyperRule:
    """The rule for a data set, of whose training images that share is used."""
    training = dataset.table[dataset.table["split"] == TRAIN]
    side = training[["width", "height"]].min(axis=1).median()
    return hyperrule(max(1, round(len(training) * fraction)), float(side))
