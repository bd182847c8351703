"""What a sample of the validation images was taken for, epoch by epoch: shows which images a run changes its mind about."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune_core.errors import RunError
from finetune_core.files import write_bytes
from finetune_core.training.batches import uniform

_FILE = "guesses.json"
_MOST = 300


@dataclass(frozen=True)
class Guesses:
    """
    Attributes:
        ids, labels: of the sample's images.
        predicted: int ``[epochs][images]``.
    """

    ids: tuple[str, ...]
    labels: tuple[int, ...]
    predicted: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Flip:
    """An image whose prediction has changed: what it was taken for, one entry an epoch, and the last epoch that changed it."""

    id: str
    label: int
    predicted: tuple[int, ...]
    last: int

    @property
    def turns(self) -> tuple[int, ...]:
        """The predictions without repetitions."""
        changed = [at for at in range(1, len(self.predicted)) if self.predicted[at] != self.predicted[at - 1]]
        return (self.predicted[0], *(self.predicted[at] for at in changed))


def add_guesses(
    run_dir: Path, epoch: int, ids: np.ndarray, keys: np.ndarray, labels: np.ndarray, predicted: np.ndarray
) -> None:
    """Note an epoch's predictions of the same few hundred images; what a resumed run tells again replaces the earlier."""
    if epoch == 1:
        some = np.sort(np.argsort(uniform(keys, 0, 0, 8), kind="stable")[:_MOST])
        known = Guesses(tuple(ids[some].tolist()), tuple(labels[some].tolist()), ())
    else:
        known = load_guesses(run_dir)
    named = dict(zip(ids.tolist(), predicted.tolist(), strict=True))
    before = known.predicted[: epoch - 1]
    latest = before[-1] if before else (-1,) * len(known.ids)
    row = tuple(named.get(image, last) for image, last in zip(known.ids, latest, strict=True))
    told = {"ids": known.ids, "labels": known.labels, "predicted": [*before, row]}
    write_bytes(run_dir / _FILE, json.dumps(told).encode())


def load_guesses(run_dir: Path) -> Guesses:
    """What a run has noted so far; nothing, before its first epoch has ended.

    Raises:
        RunError: when it is damaged.
    """
    try:
        told = json.loads((run_dir / _FILE).read_bytes())
        return Guesses(tuple(told["ids"]), tuple(told["labels"]), tuple(map(tuple, told["predicted"])))
    except FileNotFoundError:
        return Guesses((), (), ())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{run_dir / _FILE} is damaged: {error}") from None


def flips(guesses: Guesses) -> list[Flip]:
    """The images whose prediction has changed, the latest change first, then the most changes."""
    if len(guesses.predicted) < 2:
        return []
    rows = np.array(guesses.predicted)
    changes = rows[1:] != rows[:-1]
    found = [
        Flip(guesses.ids[at], guesses.labels[at], tuple(rows[:, at].tolist()), int(np.flatnonzero(changes[:, at])[-1]) + 2)
        for at in np.flatnonzero(changes.any(axis=0))
    ]
    return sorted(found, key=lambda flip: (-flip.last, -len(flip.turns), flip.id))
