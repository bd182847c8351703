"""Smoothed loss and accuracy of a run's latest batches."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

_LONGEST_SPAN = 50  # steps; a twentieth of short runs


def smooth(
    steps: Sequence[Mapping[str, Any]],
    kind: Literal["loss", "accuracy"],
    images: int,
    steps_per_epoch: int,
    epochs: int,
) -> list[float]:
    """Return an exponential moving average over batches, one value per row.

    Batches are weighted by images, and the average is corrected for its start (Kingma & Ba 2015).
    It continues through the ends of epochs, where a mean over the epoch so far would jump.

    Args:
        steps: StepEnded rows, some of which may be missing. Rows hold means over the epoch so far,
            from which the mean of all images since the previous row follows, so no image between
            two rows is lost.
        kind: the value to smooth.
        images: images per epoch.
        steps_per_epoch: steps per epoch.
        epochs: epochs of the run.
    """
    span = images / steps_per_epoch * min(_LONGEST_SPAN, max(1.0, epochs * steps_per_epoch / 20))
    values: list[float] = []
    average = weight = 0.0
    epoch, seen, summed = 0, 0, 0.0  # of the previous row; images and sum within its epoch
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
