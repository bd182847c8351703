"""Nearest training images of a new image, and whether it is unlike all of them.

Distances are between the features that the head sees, scaled to unit length. An image is called
unlike the training images if its distance to them is greater than that of nearly all validation
images (deep nearest neighbours, Sun et al. 2022). The share of validation images that would be
called unlike in error is fixed beforehand, as in split conformal prediction.

Training draws unseen kinds of images towards the known classes, so the features from before
training count, too. A network that was trained whole on digits recognised 3 % of 450 photographs as
unlike by its own features alone, and all of them by both.
"""

import copy
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import fx

from finetune_core.data.splits import TRAIN, VAL
from finetune_core.errors import RunError
from finetune_core.evaluation.prediction.predictor import Predictor
from finetune_core.evaluation.run_images import RunImages, load_run_images
from finetune_core.files import read_regular, stat_regular, write_bytes
from finetune_core.inspection.features import iterate_inputs
from finetune_core.models.partition import SplitError, trace
from finetune_core.models.weights import state_hash
from finetune_core.runs.store import Run
from finetune_core.training.compile.compiler import Compiler, Part
from finetune_core.training.data_pipeline.preview import network_input
from finetune_core.training.data_pipeline.trunk import split_network
from finetune_core.training.devices.device import Device, Forward
from finetune_core.training.devices.turn import run_on_idle_device
from finetune_core.training.predictions import FINAL_PRECISION
from finetune_core.work import Step, Work

_FILE = "neighbours.npz"
_LARGEST = 2**31  # bytes
_MOST = {TRAIN: 10_000, VAL: 2_000}  # images
_NEAREST = 5  # number of neighbours whose mean distance counts
_AT_ONCE = 256  # images
# Share of validation-like images that is called unlike; more if there are too few of them to tell.
_ERROR = 0.01


@dataclass(frozen=True)
class Encoder:
    """A network cut before its head: images in, features and class probabilities out.

    Attributes:
        predictor: the whole network.
        body: the network without its head.
        head: the head.
        start: the body before training; None if training changed nothing but the head.
    """

    predictor: Predictor
    body: Forward
    head: Forward
    start: Forward | None

    def compile(self, compiler: Compiler) -> "Encoder":
        """Return a copy whose body is compiled if that pays."""
        if not isinstance(self.body, fx.GraphModule):
            return self
        part = Part(
            self.body, f"{self.predictor.network.info.name} body", lambda: _hash_weights(self)
        )
        return replace(self, body=compiler.forward(part))

    def to(self, device: Device) -> "Encoder":
        """Return the encoder on another device."""
        predictor = self.predictor.to(device)
        return self if predictor is self.predictor else make_encoder(predictor)

    def encode_batch(self, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return features and class probabilities of normalised images.

        Returns:
            Features, float32 ``[n, parts, d]``, each part of unit length, and probabilities,
            float64 ``[n, classes]``. The first part is from the network itself. The second, if
            there is one, is from the network before training.
        """
        device = self.predictor.device
        images = device.move_inputs(images)
        with torch.no_grad(), device.autocast():
            own = self.body(images)
            logits = self.head(own)
            parts = [own] if self.start is None else [own, self.start(images)]
        unit = torch.stack(
            [torch.nn.functional.normalize(part.flatten(1).float(), dim=1) for part in parts], dim=1
        )
        return unit.cpu().numpy(), logits.float().cpu().double().softmax(1).numpy()

    def encode_image(self, image: Path | bytes) -> tuple[np.ndarray, np.ndarray]:
        """Return features ``[parts, d]`` and probabilities ``[classes]`` of one image.

        Raises:
            ImageError: if the image cannot be read.
        """
        preview = network_input(image, self.predictor.network.info, self.predictor.image_size)
        features, probabilities = self.encode_batch(preview.tensor[None])
        return features[0], probabilities[0]


@dataclass(frozen=True)
class Neighbourhood:
    """Features of a run's training images, with usual distances.

    Attributes:
        ids: ids of the training images, ``[n]``.
        labels: int ``[n]``.
        features: float32 ``[n, parts, d]``, from ``Encoder.encode_batch``.
        usual: distances of validation images to the training images, float32 ``[parts, m]``, each
            row sorted.
        unchanged: True if these are surely the images that the run was trained on.
    """

    ids: np.ndarray
    labels: np.ndarray
    features: np.ndarray
    usual: np.ndarray
    unchanged: bool

    @property
    def error(self) -> float:
        """Upper bound of the share of validation-like images that is called unlike in error.

        1 %, or more if there are few validation images.
        """
        parts, count = self.usual.shape
        return max(_ERROR, int(parts) / (int(count) + 1))

    @cached_property
    def limits(self) -> np.ndarray:
        """Distances beyond which an image is unlike the training images, ``[parts]``.

        Each part gets an equal share of the error.
        """
        parts, count = self.usual.shape
        rank = int(np.ceil((count + 1) * (1 - self.error / parts) - 1e-9))
        return self.usual[:, rank - 1]

    def find_nearest(
        self, features: np.ndarray, count: int = _NEAREST
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the training images that are nearest by the network's own features.

        Args:
            features: ``[parts, d]`` of one image.
            count: number of training images.

        Returns:
            Positions of the training images, and their cosine distances (0…2).
        """
        distances = 1 - self.features[:, 0] @ features[0]
        order = np.argsort(distances, kind="stable")[:count]
        return order, distances[order]

    def find_unlike(self, features: np.ndarray) -> np.ndarray:
        """Return which images are farther away than nearly all validation images.

        Args:
            features: ``[m, parts, d]``.

        Returns:
            Bool ``[m]``.
        """
        return np.asarray(
            (_mean_distances(features, self.features) > self.limits[:, None]).any(axis=0)
        )


Known = tuple[Encoder, Neighbourhood]  # of one network


def make_encoder(predictor: Predictor) -> Encoder:
    """Cut the predictor's network before its head; its modules are shared, not copied.

    Raises:
        RunError: if the network cannot be cut there, or is an ensemble.
    """
    network = predictor.network
    if network.members:
        raise RunError(
            "An ensemble has no features to compare images with: each of its networks has its own."
        )
    last = len(network.stages) - 1
    try:
        segments = split_network(network)
        body, head = segments.part(None, last).eval(), segments.part(last, None).eval()
        start = None
        if _has_changed_body(predictor):
            before = predictor.device.move_module(copy.deepcopy(network.pretrained).eval())
            start = trace(before, network.stages, network.image_size).part(None, last).eval()
    except SplitError as error:
        raise RunError(
            f"{network.info.name} has no features to compare images with: {error}."
        ) from None
    return Encoder(predictor, body, head, start)


def _has_changed_body(predictor: Predictor) -> bool:
    """Return whether training changed anything but the head."""
    network = predictor.network
    now, before = network.model.state_dict(), network.pretrained.state_dict()
    names = [
        name
        for stage in network.stages[:-1]
        for name in (*stage.parameters, *stage.buffers)
        if name in now
    ]
    return any(not torch.equal(now[name].cpu(), before[name].cpu()) for name in names)


def load_neighbourhood(run: Run, encoder: Encoder) -> Neighbourhood | None:
    """Return the stored result of ``compute_neighbourhood`` for these weights, or None."""
    try:
        arrays = _read_arrays(read_regular(run.run_dir / _FILE, _LARGEST))
        if str(arrays["weights"]) != _hash_weights(encoder):
            return None
        return _build_neighbourhood(arrays, encoder)
    # There is no file, or it is damaged (then zipfile and NumPy raise nearly anything). It can be
    # computed again.
    except Exception:
        return None


def _read_arrays(content: bytes) -> dict[str, np.ndarray]:
    """Read arrays that ``np.savez`` wrote.

    Raises nearly anything if the content is something else. ``np.load`` is not used, because it
    trusts any size that a file claims.
    """
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in ("weights", "ids", "labels", "features", "usual", "unchanged"):
            entry = archive.getinfo(f"{name}.npy")
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > len(content):
                raise ValueError(f"{name} is packed")
            with archive.open(entry) as file:
                if np.lib.format.read_magic(file) != (1, 0):
                    raise ValueError(f"{name} is of another version")
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
                if fortran or dtype.hasobject:
                    raise ValueError(f"{name} is of another kind")
                arrays[name] = np.frombuffer(file.read(), dtype).reshape(shape)
    return arrays


def _build_neighbourhood(arrays: dict[str, np.ndarray], encoder: Encoder) -> Neighbourhood:
    """Build a ``Neighbourhood`` from stored arrays.

    Raises:
        ValueError: if the arrays do not match this network, or each other.
    """
    ids, labels, features, usual = (arrays[name] for name in ("ids", "labels", "features", "usual"))
    side = encoder.predictor.image_size
    shape = encoder.encode_batch(torch.zeros(1, 3, side, side))[0].shape[1:]
    valid = (
        ids.dtype.kind == "U"
        and labels.dtype.kind == "i"
        and features.dtype.kind == usual.dtype.kind == "f"
        and ids.shape == labels.shape == features.shape[:1]
        and features.shape[1:] == shape
        and usual.shape[:1] == shape[:1]
        and min(ids.size, usual.size) > 0
        and usual.ndim == 2
        and labels.min() >= 0
        and labels.max() < len(encoder.predictor.classes)
        and np.isfinite(features).all()
        and np.isfinite(usual).all()
    )
    if not valid:
        raise ValueError("these are no features of training images")
    return Neighbourhood(
        ids, labels, features.astype(np.float32), np.sort(usual, axis=1), bool(arrays["unchanged"])
    )


def neighbours_mtime(run: Run) -> int:
    """Return when a run's neighbourhood was written, in nanoseconds; 0 if there is none."""
    status = stat_regular(run.run_dir / _FILE)
    return status.st_mtime_ns if status else 0


def compute_neighbourhood(
    run: Run, looks: Encoder, roots: Sequence[Path] = ()
) -> Work[Neighbourhood]:
    """Compute features of the training and validation images, and store them in the run directory.

    An idle GPU is used if there is one.

    Args:
        run: the run.
        looks: the encoder of its network.
        roots: if given, images outside of these folders are refused.

    Yields:
        Steps of the phases ``index``, ``decode`` and ``features``.

    Raises:
        FinetuneError: if the images are missing or may not be read, or the run directory cannot be
            written to.
    """
    images = yield from load_run_images(run, _MOST, roots)
    train, val = images.rows[TRAIN], images.rows[VAL]
    rows = np.concatenate([train, val])
    features = yield from run_on_idle_device(
        lambda device: _compute_features(looks.to(device), images, rows), FINAL_PRECISION
    )
    table = images.dataset.table.iloc[train]
    ids, labels = table["id"].to_numpy(str), table["label"].to_numpy(np.int64)
    near = features[: len(train)]
    usual = np.sort(_mean_distances(features[len(train) :], near), axis=1)
    neighbourhood = Neighbourhood(ids, labels, near, usual, images.unchanged)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        weights=_hash_weights(looks),
        ids=ids,
        labels=labels,
        features=near.astype(np.float16),
        usual=usual,
        unchanged=images.unchanged,
    )
    try:
        write_bytes(run.run_dir / _FILE, buffer.getvalue(), make_folder=False)
    except OSError as error:
        raise RunError(
            f"The features of its images cannot be written to {run.run_dir}: {error}."
        ) from None
    return neighbourhood


def _compute_features(encoder: Encoder, images: RunImages, rows: np.ndarray) -> Work[np.ndarray]:
    predictor, features = encoder.predictor, []
    done = 0
    for batch, inputs in iterate_inputs(
        predictor.network, images.pixels, rows, predictor.image_size, predictor.device
    ):
        features.append(encoder.encode_batch(inputs)[0])
        done += len(batch)
        yield Step(done, len(rows), "features")
    return np.concatenate(features)


def _mean_distances(features: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Return the mean cosine distance of each image to its nearest training images.

    Args:
        features: ``[m, parts, d]``.
        near: ``[n, parts, d]`` of the training images.

    Returns:
        Float32 ``[parts, m]``.
    """
    count = min(_NEAREST, len(near))
    distances = np.empty((near.shape[1], len(features)), np.float32)
    for part in range(len(distances)):
        for start in range(0, len(features), _AT_ONCE):
            likeness = features[start : start + _AT_ONCE, part] @ near[:, part].T
            nearest = np.partition(likeness, len(near) - count, axis=1)[:, len(near) - count :]
            distances[part, start : start + _AT_ONCE] = 1 - nearest.mean(axis=1)
    return distances


def _hash_weights(encoder: Encoder) -> str:
    """Return a hash of the network's weights."""
    return state_hash(encoder.predictor.network.model.state_dict())
