"""The loss and accuracy of a run's latest batches, smoothed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

_LONGEST_SPAN = 50  # steps; of short runs a twentieth


def smoothed(
    steps: Sequence[Mapping[str, Any]],
    kind: Literal["loss", "accuracy"],
    images: int,
    steps_per_epoch: int,
    epochs: int,
) -> list[float]:
    """An exponential moving average over batches, one value per row, weighted by images and corrected for its start (Kingma & Ba 2015).

    It runs on through the ends of epochs, where a mean over the epoch so far would jump.

    Args:
        steps: StepEnded rows, some of them possibly left out: from the means over the epoch so far follows that of all images
            since the row before, so that none of those between two rows is lost.
        images: in an epoch.
    """
    span = images / steps_per_epoch * min(_LONGEST_SPAN, max(1.0, epochs * steps_per_epoch / 20))
    values: list[float] = []
    average = weight = 0.0
    epoch, seen, summed = 0, 0, 0.0  # within the epoch of the row before
    for row in steps:
        if row["epoch"] != epoch:
            epoch, seen, summed = row["epoch"], 0, 0.0
        now = row["images"] - (epoch - 1) * images
        if now > seen:
            keeps, whole = math.exp((seen - now) / span), row[f"epoch_{kind}"] * now
            average = keeps * average + (1 - keeps) * (whole - summed) / (now - seen)
            weight = keeps * weight + (1 - keeps)
            seen, summed = now, whole
        values.append(average / weight if weight else row[f"epoch_{kind}"])
    return values
