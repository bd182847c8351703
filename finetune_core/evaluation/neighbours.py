"""The training images most like a new one, by what the network makes of them, and whether any is like it at all.

Distances are between the features that the head sees, brought to unit length. An image is called unlike anything in training
when its distance to the training images is greater than that of nearly all validation images (deep nearest neighbours,
Sun et al. 2022); how many of those would be called so in error is set beforehand, as in split conformal prediction.
"""

import io
import zipfile
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import fx

from finetune_core.data.splits import TRAIN, VAL
from finetune_core.errors import RunError
from finetune_core.evaluation.predict import Predictor
from finetune_core.evaluation.run_images import RunImages, run_images
from finetune_core.files import write_bytes
from finetune_core.inspection.features import network_inputs
from finetune_core.models.split import CannotSplit
from finetune_core.models.weights import state_hash
from finetune_core.runs.store import Run
from finetune_core.training.preview import network_input
from finetune_core.training.trunk import split_network

_FILE = "neighbours.npz"
_MOST = {TRAIN: 20_000, VAL: 2_000}  # images
_NEAREST = 5  # whose mean distance counts
_AT_ONCE = 256  # images
_ERROR = 0.01  # of images like the validation images, the share called unlike; more where there are too few to tell


@dataclass(frozen=True)
class Encoder:
    """A network cut before its head: images in, features and class probabilities out."""

    predictor: Predictor
    body: fx.GraphModule
    head: fx.GraphModule

    def features(self, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Features of unit length, float32 ``[n, d]``, and probabilities, float64 ``[n, classes]``, of normalised images."""
        device = self.predictor.device
        with torch.no_grad(), device.autocast():
            features = self.body(images.to(device.torch_device))
            logits = self.head(features)
        unit = torch.nn.functional.normalize(features.flatten(1).float(), dim=1)
        return unit.cpu().numpy(), logits.float().cpu().double().softmax(1).numpy()

    def look(self, image: Path | bytes) -> tuple[np.ndarray, np.ndarray]:
        """Features ``[d]`` and probabilities ``[classes]`` of one image.

        Raises:
            ImageError: when it cannot be read.
        """
        seen = network_input(image, self.predictor.network.info.name, self.predictor.image_size)
        features, probabilities = self.features(seen.tensor[None])
        return features[0], probabilities[0]


@dataclass(frozen=True)
class Neighbourhood:
    """What a run's network makes of its training images.

    Attributes:
        ids, labels: of the training images, ``[n]``.
        features: float32 ``[n, d]``, of unit length.
        usual: the distance of validation images to the training images, float32 ``[m]``, sorted.
        unchanged: whether these are surely the images that the run was trained on.
    """

    ids: np.ndarray
    labels: np.ndarray
    features: np.ndarray
    usual: np.ndarray
    unchanged: bool

    @property
    def error(self) -> float:
        """The share of images like the validation images that is called unlike in error: 1 %, or more where they are few."""
        return max(_ERROR, 1 / (len(self.usual) + 1))

    @cached_property
    def limit(self) -> float:
        """The distance beyond which an image is unlike anything in training."""
        rank = int(np.ceil((len(self.usual) + 1) * (1 - self.error) - 1e-9))
        return float(self.usual[rank - 1])

    def nearest(self, features: np.ndarray, count: int = _NEAREST) -> tuple[np.ndarray, np.ndarray]:
        """The nearest training images of one image's features ``[d]``: their positions, and their cosine distances (0…2)."""
        distances = 1 - self.features @ features
        order = np.argsort(distances, kind="stable")[:count]
        return order, distances[order]

    def unlike(self, features: np.ndarray) -> np.ndarray:
        """Boolean ``[m]``: which images ``[m, d]`` are farther from the training images than nearly all validation images."""
        return _distances(features, self.features) > self.limit


def encoder(predictor: Predictor) -> Encoder:
    """The predictor's network, cut before its head; the parts are its own.

    Raises:
        RunError: when it cannot be cut there.
    """
    network = predictor.network
    last = len(network.stages) - 1
    try:
        segments = split_network(network)
        return Encoder(predictor, segments.part(None, last).eval(), segments.part(last, None).eval())
    except CannotSplit as error:
        raise RunError(f"{network.info.name} has no features to compare images by: {error}.") from None


def known_neighbourhood(run: Run, looks: Encoder) -> Neighbourhood | None:
    """What was kept of an earlier ``compute_neighbourhood`` with these weights."""
    try:
        with np.load(run.run_dir / _FILE, allow_pickle=False) as kept:
            if str(kept["weights"]) != _mark(looks):
                return None
            names = ("ids", "labels", "features", "usual")
            ids, labels, features, usual = (kept[name] for name in names)
            return Neighbourhood(ids, labels, features.astype(np.float32), usual, bool(kept["unchanged"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # none yet, or damaged: it can be computed again
        return None


def neighbours_changed(run: Run) -> int:
    """When a run's neighbourhood was written, in nanoseconds; 0 when there is none."""
    file = run.run_dir / _FILE
    return file.stat().st_mtime_ns if file.is_file() else 0


def compute_neighbourhood(
    run: Run, looks: Encoder, roots: Sequence[Path] = ()
) -> Generator[tuple[str, int, int], None, Neighbourhood]:
    """Run the training and validation images through the network once, and keep what comes out in the run's folder.

    Args:
        roots: when given, images that lie elsewhere are refused.

    Yields:
        (phase, done, total); phases are ``index``, ``decode`` and ``features``.

    Raises:
        FinetuneError: when the images are not there any more, may not be read, or the run's folder cannot be written to.
    """
    images = yield from run_images(run, _MOST, roots)
    train, val = images.rows[TRAIN], images.rows[VAL]
    features = yield from _features(looks, images, np.concatenate([train, val]))
    table = images.dataset.table.iloc[train]
    ids, labels = table["id"].to_numpy(str), table["label"].to_numpy(np.int64)
    near = features[: len(train)]
    usual = np.sort(_distances(features[len(train) :], near))
    made = Neighbourhood(ids, labels, near, usual, images.unchanged)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        weights=_mark(looks),
        ids=ids,
        labels=labels,
        features=near.astype(np.float16),
        usual=usual,
        unchanged=images.unchanged,
    )
    try:
        write_bytes(run.run_dir / _FILE, buffer.getvalue())
    except OSError as error:
        raise RunError(f"What the network makes of its images cannot be written to {run.run_dir}: {error}.") from None
    return made


def _features(looks: Encoder, images: RunImages, rows: np.ndarray) -> Generator[tuple[str, int, int], None, np.ndarray]:
    predictor, found = looks.predictor, []
    done = 0
    for batch, inputs in network_inputs(predictor.network, images.pixels, rows, predictor.image_size):
        found.append(looks.features(inputs)[0])
        done += len(batch)
        yield "features", done, len(rows)
    return np.concatenate(found)


def _distances(features: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Mean cosine distance of each image ``[m, d]`` to the nearest of the training images ``[n, d]``: float32 ``[m]``."""
    count = min(_NEAREST, len(near))
    found = []
    for start in range(0, len(features), _AT_ONCE):
        likeness = features[start : start + _AT_ONCE] @ near.T
        found.append(1 - np.partition(likeness, len(near) - count, axis=1)[:, len(near) - count :].mean(axis=1))
    return np.concatenate(found).astype(np.float32)


def _mark(looks: Encoder) -> str:
    """Changes with the network's weights."""
    return state_hash(looks.predictor.network.model.state_dict(), head="")
