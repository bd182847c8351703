"""Running metrics of an epoch.

Per class: how many images have it, are predicted to have it, and both.
"""

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from pydantic import AliasChoices, Field

from finetune_core.training.events import Count, EpochScores, Number


@dataclass
class RunningMetrics:
    """Counts over the images of an epoch so far.

    Attributes:
        images: For each class, the images that have it.
        predicted: For each class, the images that are predicted to have it.
        hits: For each class, the images of both kinds.
        loss_sum: Sum of the images' losses.
    """

    images: list[Count]
    # Earlier versions used the second name.
    predicted: Annotated[list[Count], Field(validation_alias=AliasChoices("predicted", "named"))]
    hits: list[Count]
    loss_sum: Number = field(default=0.0)

    @classmethod
    def zeros(cls, classes: int) -> "RunningMetrics":
        """Return metrics with nothing counted yet."""
        return cls([0] * classes, [0] * classes, [0] * classes)

    def add(self, labels: np.ndarray, predicted: np.ndarray, loss: float) -> None:
        """Count a batch.

        Args:
            labels: int ``[n]``.
            predicted: int ``[n]``.
            loss: Mean loss of the batch.
        """
        for counts, seen in (
            (self.images, labels),
            (self.predicted, predicted),
            (self.hits, labels[labels == predicted]),
        ):
            for label, count in zip(*np.unique(seen, return_counts=True), strict=True):
                counts[label] += int(count)
        self.loss_sum += loss * len(labels)

    @property
    def num_images(self) -> int:
        """Number of images counted so far."""
        return sum(self.images)

    @property
    def loss(self) -> float:
        """Mean loss of these images."""
        return self.loss_sum / self.num_images

    @property
    def accuracy(self) -> float:
        """Share of these images that are predicted correctly, 0…1."""
        return sum(self.hits) / self.num_images

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have images."""
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
        """Mean F1 of the classes that have images or were predicted."""
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

    def compute_scores(self) -> EpochScores:
        """Return ``balanced_accuracy`` and ``macro_f1``."""
        return {"balanced_accuracy": self.balanced_accuracy, "macro_f1": self.macro_f1}
