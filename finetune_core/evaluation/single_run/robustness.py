"""How accuracy holds when images get worse: graded corruptions in the manner of Hendrycks & Dietterich 2019."""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageFilter
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from finetune_core.data.decode import read_square
from finetune_core.data.threads import in_threads
from finetune_core.errors import ImageError, RunError
from finetune_core.evaluation.intervals import accuracy_interval
from finetune_core.evaluation.prediction.predictor import Predictor, load_predictor
from finetune_core.evaluation.run_images import run_image
from finetune_core.evaluation.single_run.evaluate import evaluation
from finetune_core.files import read_regular, write_bytes
from finetune_core.runs.store import Run
from finetune_core.training.batches import evaluated, normalised
from finetune_core.training.compiled import Compiler
from finetune_core.training.device import Device
from finetune_core.training.device_turn import on_idle_device
from finetune_core.training.events import Count, Name, Share
from finetune_core.training.feeding import Forward
from finetune_core.training.predictions import FINAL_PRECISION, Moment, predictions_changed
from finetune_core.work import Step, Work

MOST_IMAGES = 200
_BATCH = 32
_COLUMNS = ["corruption", "severity", "accuracy", "low", "high"]
_FULL_SIZE = 224  # pixels that lengths are given for

Corrupt = Callable[[Image.Image, float, np.random.Generator], Image.Image]


def _blur(image: Image.Image, sigma: float, _: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(sigma * image.width / _FULL_SIZE))


def _noise(image: Image.Image, spread: float, random: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float64)
    noisy = pixels + random.normal(0, 255 * spread, pixels.shape)
    return Image.fromarray(np.uint8(noisy.clip(0, 255).round()))


def _jpeg(image: Image.Image, quality: float, _: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(quality))
    return Image.open(buffer).convert("RGB")


def _brightness(image: Image.Image, more: float, _: np.random.Generator) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    return Image.merge("HSV", (hue, saturation, value.point(lambda level: min(255, round(level + 255 * more))))).convert("RGB")


def _rotation(image: Image.Image, degrees: float, random: np.random.Generator) -> Image.Image:
    # Corners take the mean colour: black ones would be a second corruption.
    mean = tuple(np.asarray(image).mean((0, 1)).round().astype(int).tolist())
    return image.rotate(degrees * random.choice((-1, 1)), Image.Resampling.BILINEAR, fillcolor=mean)


@dataclass(frozen=True)
class Corruption:
    """One way to make images worse.

    Attributes:
        severities: mild, middle, strong: the 1st, 3rd and 5th of Hendrycks & Dietterich, who have no rotation.
        unit: what they are.
    """

    title: str
    severities: tuple[float, float, float]
    unit: str
    apply: Corrupt


CORRUPTIONS = {
    "blur": Corruption("Gaussian blur", (1, 3, 6), "pixels, standard deviation at 224", _blur),
    "noise": Corruption("Gaussian noise", (0.08, 0.18, 0.38), "of the range, standard deviation", _noise),
    "jpeg": Corruption("JPEG", (25, 15, 7), "quality", _jpeg),
    "brightness": Corruption("Brightness", (0.1, 0.3, 0.5), "of the range, brighter", _brightness),
    "rotation": Corruption("Rotation", (10, 25, 45), "degrees", _rotation),
}


class _Row(TypedDict):
    corruption: Name
    severity: Count
    accuracy: Share
    low: Share
    high: Share


class _Kept(TypedDict):
    """What the file holds: for which predictions it was measured, and on how many images."""

    predictions: Moment
    images: Count
    rows: Annotated[list[_Row], Field(max_length=100)]


_KEPT = TypeAdapter(_Kept)
_LARGEST = 2**20  # bytes


@dataclass(frozen=True)
class Robustness:
    """Accuracy under corruption.

    Attributes:
        images: how many were drawn from the split; the same ones everywhere.
        rows: ``corruption`` (a key of ``CORRUPTIONS``, or ``none``), ``severity`` (0 for none, 1 to 3), ``accuracy, low, high``
            (95 %, Wilson 1927).
    """

    split: str
    images: int
    rows: pd.DataFrame


def measure_robustness(run: Run, split: str, seed: int = 0, roots: Sequence[Path] = ()) -> Work[Robustness]:
    """Ask a run's best network about images of a split that get worse and worse, on the GPU where nothing uses it, and keep the answer in
    the run's folder.

    Args:
        roots: when given, images that lie elsewhere are refused.

    Yields:
        Steps that count predictions.

    Raises:
        FinetuneError: when there is no network, no predictions, or none of the images can be read any more.
    """
    return (yield from on_idle_device(partial(_measured, run, split, seed, roots), FINAL_PRECISION))


def _measured(run: Run, split: str, seed: int, roots: Sequence[Path], device: Device) -> Work[Robustness]:
    changed = predictions_changed(run.run_dir)
    predictor = load_predictor(run, device)
    squares, labels = _sample(run, predictor, split, seed, roots)
    ways = list(_ways())
    right = np.zeros(len(ways), dtype=int)
    total = len(ways) * len(squares)
    with Compiler(predictor.device, total, _BATCH) as compiler:
        forward = compiler.forward(predictor.part)
        for position, (name, severity) in enumerate(ways):
            for start in range(0, len(squares), _BATCH):
                batch = squares[start : start + _BATCH]
                worse = _worse(batch, name, severity, seed + start)
                right[position] += int((_predicted(predictor, forward, worse) == labels[start : start + _BATCH]).sum())
                yield Step(position * len(squares) + start + len(batch), total)
    intervals = [accuracy_interval(int(count), len(squares)) for count in right]
    rows = [(*way, *interval) for way, interval in zip(ways, intervals, strict=True)]
    result = Robustness(split, len(squares), pd.DataFrame(rows, columns=_COLUMNS))
    _keep(run, result, changed)
    return result


def known_robustness(run: Run, split: str) -> Robustness | None:
    """What was measured before, unless the run has been trained on since."""
    try:
        stored = _KEPT.validate_json(read_regular(_file(run, split), _LARGEST), strict=True)
    except (OSError, ValueError):  # none, or damaged: it can be measured again
        return None
    rows = pd.DataFrame(stored["rows"], columns=_COLUMNS)
    current = stored["predictions"] == predictions_changed(run.run_dir)
    return Robustness(split, stored["images"], rows) if current and list(_ways()) == _named_ways(rows) else None


def _ways() -> Iterator[tuple[str, int]]:
    """Every corruption and its severity, in order."""
    yield "none", 0
    yield from ((name, severity) for name in CORRUPTIONS for severity in (1, 2, 3))


def _named_ways(rows: pd.DataFrame) -> list[tuple[str, int]]:
    return list(zip(rows["corruption"], rows["severity"], strict=True))


def _sample(run: Run, predictor: Predictor, split: str, seed: int, roots: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """uint8 ``[n, side, side, 3]`` and labels of some images of the split; those that are gone or damaged are passed over."""
    rows = evaluation(run, split).predictions.sort_values("id")
    chosen = rows.sample(min(MOST_IMAGES, len(rows)), random_state=seed)
    info = predictor.network.info
    side = info.stored_side(predictor.image_size)
    squares, labels = [], []
    with closing(
        in_threads(
            lambda row: _square(run_image(run, row[0], roots), side, info.interpolation),
            list(zip(chosen["id"], chosen["label"], strict=True)),
        )
    ) as read:
        for (_, label), square in read:
            if square is not None:
                squares.append(square)
                labels.append(label)
    if not squares:
        raise RunError(f"None of the images in {run.config.data} can be read any more.")
    return np.stack(squares), np.array(labels)


def _square(path: Path, side: int, interpolation: str) -> np.ndarray | None:
    try:
        return read_square(path, side, interpolation)
    except ImageError:
        return None


def _worse(squares: np.ndarray, name: str, severity: int, seed: int) -> np.ndarray:
    if name == "none":
        return squares
    corruption = CORRUPTIONS[name]
    random = np.random.default_rng([seed, severity])
    amount = corruption.severities[severity - 1]
    return np.stack([np.asarray(corruption.apply(Image.fromarray(square), amount, random)) for square in squares])


def _predicted(predictor: Predictor, forward: Forward, squares: np.ndarray) -> np.ndarray:
    """The class that the network takes each square for; preprocessing as in validation."""
    info = predictor.network.info
    images = evaluated(torch.from_numpy(squares).permute(0, 3, 1, 2), predictor.image_size)
    with torch.no_grad(), predictor.device.autocast():
        logits = forward(predictor.device.take(normalised(images, info.mean, info.std)))
    return logits.float().argmax(1).cpu().numpy()


def _keep(run: Run, result: Robustness, changed: int) -> None:
    stored = asdict(result) | {"predictions": changed, "rows": result.rows.to_dict(orient="records")}
    try:
        write_bytes(_file(run, result.split), json.dumps(stored).encode())
    except OSError as error:
        raise RunError(f"The result cannot be kept in {run.run_dir}: {error.strerror}.") from None


def _file(run: Run, split: str) -> Path:
    return run.run_dir / f"robustness-{split}.json"
