"""Predicted classes of a sample of the validation images, epoch by epoch.

They show which images a run changes its mind about.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, TypeAdapter

from finetune_core.errors import RunError
from finetune_core.files import describe_problem, path_exists, read_regular, write_bytes
from finetune_core.training.data_pipeline.batches import draw_uniform

PREDICTION_HISTORY_FILE, _EARLIER_FILE = "prediction_history.json", "guesses.json"
_MOST = 300
_LARGEST = 2**25  # bytes

Id = Annotated[str, Field(max_length=4096)]
Label = Annotated[int, Field(ge=0, lt=100_000)]


@dataclass(frozen=True)
class PredictionHistory:
    """Predictions of a sample of images over the epochs.

    Attributes:
        ids: Ids of the sample's images.
        labels: Labels of the sample's images.
        predicted: int ``[epochs][images]``.
    """

    ids: tuple[Id, ...]
    labels: tuple[Label, ...]
    predicted: Annotated[tuple[tuple[Label, ...], ...], Field(max_length=10_000)]


_HISTORY = TypeAdapter(PredictionHistory)


@dataclass(frozen=True)
class Flip:
    """An image whose prediction has changed.

    Attributes:
        predicted: Its predicted class, one entry per epoch.
        last: The last epoch that changed it.
    """

    id: str
    label: int
    predicted: tuple[int, ...]
    last: int

    @property
    def turns(self) -> tuple[int, ...]:
        """The predictions without repetitions."""
        epochs = [
            epoch
            for epoch in range(1, len(self.predicted))
            if self.predicted[epoch] != self.predicted[epoch - 1]
        ]
        return (self.predicted[0], *(self.predicted[epoch] for epoch in epochs))


def add_predictions(
    run_dir: Path,
    epoch: int,
    ids: np.ndarray,
    keys: np.ndarray,
    labels: np.ndarray,
    predicted: np.ndarray,
) -> None:
    """Record an epoch's predictions of the same few hundred images.

    An epoch that a resumed run repeats replaces its earlier entry.
    """
    history = _start_history(ids, keys, labels)
    if epoch > 1:
        # A damaged history is no reason not to train. It begins again here.
        with suppress(RunError):
            earlier = load_prediction_history(run_dir)
            history = earlier if earlier.ids else history
    by_id = dict(zip(ids.tolist(), predicted.tolist(), strict=True))
    before = history.predicted[: epoch - 1]
    latest = before[-1] if before else history.labels
    row = tuple(by_id.get(image, last) for image, last in zip(history.ids, latest, strict=True))
    content_fields = {
        "ids": history.ids,
        "labels": history.labels,
        "predicted": [*before, *[row] * (epoch - len(before))],
    }
    content = json.dumps(content_fields).encode()
    write_bytes(run_dir / PREDICTION_HISTORY_FILE, content, make_folder=False)


def _start_history(ids: np.ndarray, keys: np.ndarray, labels: np.ndarray) -> PredictionHistory:
    """Return an empty history with the images to follow."""
    sample = np.sort(np.argsort(draw_uniform(keys, 0, 0, 8), kind="stable")[:_MOST])
    return PredictionHistory(tuple(ids[sample].tolist()), tuple(labels[sample].tolist()), ())


def load_prediction_history(run_dir: Path, classes: int | None = None) -> PredictionHistory:
    """Load what a run has recorded so far. It is empty before the first epoch has ended.

    Args:
        run_dir: The run directory.
        classes: Number of the run's classes, if known.

    Raises:
        RunError: If the file is damaged.
    """
    path = run_dir / PREDICTION_HISTORY_FILE
    if not path_exists(path):
        path = run_dir / _EARLIER_FILE  # name in earlier versions
    try:
        history = _HISTORY.validate_json(read_regular(path, _LARGEST), strict=True)
        if {len(history.labels), *map(len, history.predicted)} != {len(history.ids)}:
            raise ValueError("it does not have a prediction for each image")
        if (
            classes is not None
            and max(
                (*history.labels, *(max(row, default=0) for row in history.predicted)), default=0
            )
            >= classes
        ):
            raise ValueError("a label in it is no class")
    except FileNotFoundError:
        return PredictionHistory((), (), ())
    except (OSError, ValueError) as error:
        raise RunError(f"{run_dir}: {describe_problem(path, error)}.") from None
    return history


def find_flips(history: PredictionHistory) -> list[Flip]:
    """Return the images whose prediction has changed.

    The latest change comes first, then the most changes.
    """
    if len(history.predicted) < 2:
        return []
    rows = np.array(history.predicted)
    changes = rows[1:] != rows[:-1]
    changed = [
        Flip(
            history.ids[image],
            history.labels[image],
            tuple(rows[:, image].tolist()),
            int(np.flatnonzero(changes[:, image])[-1]) + 2,
        )
        for image in np.flatnonzero(changes.any(axis=0))
    ]
    return sorted(changed, key=lambda flip: (-flip.last, -len(flip.turns), flip.id))
