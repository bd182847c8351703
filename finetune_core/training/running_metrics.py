"""Running metrics of an epoch: how often each class occurred, was predicted, and was predicted correctly, and what follows."""

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from pydantic import AliasChoices, Field

from finetune_core.training.events import Count, EpochScores, Number


@dataclass
class RunningMetrics:
    """Counts over the images of an epoch so far.

    Attributes:
        images, predicted, hits: one number per class: images that have it, that are predicted to, and both.
        loss_sum: of the images' losses.
    """

    images: list[Count]
    # of earlier versions
    predicted: Annotated[list[Count], Field(validation_alias=AliasChoices("predicted", "named"))]
    hits: list[Count]
    loss_sum: Number = field(default=0.0)

    @classmethod
    def of(cls, classes: int) -> "RunningMetrics":
        """Nothing counted yet."""
        return cls([0] * classes, [0] * classes, [0] * classes)

    def add(self, labels: np.ndarray, predicted: np.ndarray, loss: float) -> None:
        """Count a batch: int ``[n]`` each, and its mean loss."""
        for counts, seen in (
            (self.images, labels),
            (self.predicted, predicted),
            (self.hits, labels[labels == predicted]),
        ):
            for label, count in zip(*np.unique(seen, return_counts=True), strict=True):
                counts[label] += int(count)
        self.loss_sum += loss * len(labels)

    @property
    def seen(self) -> int:
        return sum(self.images)

    @property
    def loss(self) -> float:
        return self.loss_sum / self.seen

    @property
    def accuracy(self) -> float:
        return sum(self.hits) / self.seen

    @property
    def balanced_accuracy(self) -> float:
        """The mean of the classes' recalls, of those that are there."""
        return float(
            np.mean(
                [
                    hits / images
                    for hits, images in zip(self.hits, self.images, strict=True)
                    if images
                ]
            )
        )

    @property
    def macro_f1(self) -> float:
        """The mean of the classes' F1, of those that are there or were predicted."""
        every = zip(self.images, self.predicted, self.hits, strict=True)
        return float(
            np.mean(
                [
                    2 * hits / (images + predicted)
                    for images, predicted, hits in every
                    if images + predicted
                ]
            )
        )

    def scores(self) -> EpochScores:
        """``balanced_accuracy`` and ``macro_f1``."""
        return {"balanced_accuracy": self.balanced_accuracy, "macro_f1": self.macro_f1}
