"""Prediction of many images at once: a folder or an archive in, a table out."""

import csv
import io
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from finetune_core.data.decode import EXTENSIONS
from finetune_core.data.names import escape_name, is_noise
from finetune_core.data.threads import map_in_threads
from finetune_core.errors import DataError, ImageError
from finetune_core.evaluation.prediction.neighbours import Known
from finetune_core.evaluation.prediction.predictor import Predictor
from finetune_core.files import staging_folder
from finetune_core.paths import data_dir
from finetune_core.training.compile.compiler import Compiler
from finetune_core.training.data_pipeline.preview import network_input
from finetune_core.training.devices.device import Device
from finetune_core.training.devices.turn import run_on_idle_device
from finetune_core.training.predictions import FINAL_PRECISION
from finetune_core.work import Step, Work

_BATCH = 32
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet reads these as the start of a formula


@dataclass(frozen=True)
class ImagePrediction:
    """Prediction of one file.

    Attributes:
        file: name of the file in reports.
        probabilities: float64 ``[classes]``; None if the file could not be read.
        unlike: True if the image is unlike all training images; None if that is not known.
        problem: reason why the file could not be read; empty if it could.
    """

    file: str
    probabilities: np.ndarray | None
    unlike: bool | None = None
    problem: str = ""


def list_images(folder: Path) -> list[tuple[str, Path]]:
    """Return (relative path, file) of every image in a folder and its subfolders, in order.

    Links to folders are not followed.

    Raises:
        DataError: if there is no image.
    """
    images = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_noise(name))
        paths = (
            Path(parent, name)
            for name in sorted(files)
            if not is_noise(name) and Path(name).suffix.lower() in EXTENSIONS
        )
        images += [(path.relative_to(folder).as_posix(), path) for path in paths]
    if not images:
        raise DataError(
            f"{escape_name(folder.name)} holds no image. Thaw reads "
            f"{', '.join(sorted(EXTENSIONS))}."
        )
    return images


def make_unpack_folder() -> AbstractContextManager[Path]:
    """Return a context manager for a temporary folder that an archive of images is unpacked to."""
    return staging_folder(data_dir(), "naming")


def predict_images(
    predictor: Predictor, images: Sequence[tuple[str, Path]], known: Known | None = None
) -> Work[list[ImagePrediction]]:
    """Predict images in their order, on an idle GPU if there is one.

    Files that cannot be read are marked as such.

    Args:
        predictor: the network.
        images: (name in reports, file).
        known: encoder of the predictor and its training images; without them no image is flagged as
            unlike.

    Yields:
        Steps that count images.
    """

    def predict_on(device: Device) -> Work[list[ImagePrediction]]:
        return _predict(predictor.to(device), images, known and (known[0].to(device), known[1]))

    return (yield from run_on_idle_device(predict_on, FINAL_PRECISION))


def _predict(
    predictor: Predictor, images: Sequence[tuple[str, Path]], known: Known | None
) -> Work[list[ImagePrediction]]:
    predictions: list[ImagePrediction] = []

    def read(image: tuple[str, Path]) -> torch.Tensor | str:
        try:
            return network_input(image[1], predictor.network.info, predictor.image_size).tensor
        except ImageError as error:
            return str(error)

    with Compiler(predictor.device, len(images), _BATCH) as compiler:
        evaluated = _make_forward(predictor, known, compiler)
        for start in range(0, len(images), _BATCH):
            loaded = list(map_in_threads(read, images[start : start + _BATCH]))
            squares = [square for _, square in loaded if not isinstance(square, str)]
            results = iter(evaluated(torch.stack(squares)) if squares else ())
            predictions += [
                ImagePrediction(name, None, problem=square)
                if isinstance(square, str)
                else ImagePrediction(name, *next(results))
                for (name, _), square in loaded
            ]
            yield Step(len(predictions), len(images))
    return predictions


@dataclass(frozen=True)
class NetworkPredictions:
    """Predictions of one network for a list of images that several networks predict."""

    title: str
    classes: Sequence[str]
    predictions: Sequence[ImagePrediction]

    @property
    def top(self) -> list[str]:
        """The most likely class of each image; empty if it could not be read."""
        return [
            ""
            if prediction.probabilities is None
            else self.classes[int(prediction.probabilities.argmax())]
            for prediction in self.predictions
        ]


def to_frame(predictions: Sequence[ImagePrediction], classes: Sequence[str]) -> pd.DataFrame:
    """Return a table: ``file, class, probability, unlike, problem``, and each class's probability.

    Probabilities are NaN, and the class is None, if an image could not be read.
    """
    columns = ["file", *_column_names(NetworkPredictions("", classes, predictions))]
    rows = []
    for prediction in predictions:
        probabilities = prediction.probabilities
        if probabilities is None:
            rows.append(
                [
                    prediction.file,
                    None,
                    None,
                    prediction.unlike,
                    prediction.problem,
                    *[None] * len(classes),
                ]
            )
        else:
            best = int(probabilities.argmax())
            rows.append(
                [
                    prediction.file,
                    classes[best],
                    probabilities[best],
                    prediction.unlike,
                    prediction.problem,
                    *probabilities.tolist(),
                ]
            )
    return pd.DataFrame(rows, columns=columns).astype(
        dict.fromkeys(["probability", *columns[5:]], "float64")
    )


def to_csv(predictions: Sequence[ImagePrediction], classes: Sequence[str]) -> bytes:
    """Return ``file, class, probability, unlike, problem`` and each class's probability as UTF-8.

    Names are untrusted: a cell that a spreadsheet would take for a formula is prefixed by an
    apostrophe (OWASP, CSV injection).
    """
    return side_by_side_csv([NetworkPredictions("", classes, predictions)])


def side_by_side_csv(answers: Sequence[NetworkPredictions]) -> bytes:
    """Return ``to_csv`` of several networks side by side.

    The network's title is appended to the names of its columns.
    """
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(["file", *(column for answer in answers for column in _column_names(answer))])
    for rows in zip(*(answer.predictions for answer in answers), strict=True):
        cells = [
            _format_cells(row, answer.classes) for row, answer in zip(rows, answers, strict=True)
        ]
        table.writerow(
            [_escape_formula(rows[0].file), *(cell for row_cells in cells for cell in row_cells)]
        )
    return text.getvalue().encode("utf-8", "replace")


def _column_names(answers: NetworkPredictions) -> list[str]:
    names = [
        "class",
        "probability",
        "unlike",
        "problem",
        *(f"p({name})" for name in answers.classes),
    ]
    return [f"{name}, {answers.title}" for name in names] if answers.title else names


def _format_cells(prediction: ImagePrediction, classes: Sequence[str]) -> list[str]:
    unlike = "" if prediction.unlike is None else "yes" if prediction.unlike else "no"
    if prediction.probabilities is None:
        return ["", "", unlike, _escape_formula(prediction.problem), *[""] * len(classes)]
    best = int(prediction.probabilities.argmax())
    chances = [f"{chance:.6f}" for chance in prediction.probabilities]
    return [_escape_formula(classes[best]), chances[best], unlike, "", *chances]


def _make_forward(
    predictor: Predictor, known: Known | None, compiler: Compiler
) -> Callable[[torch.Tensor], list[tuple[np.ndarray, bool | None]]]:
    """Return the function that predicts a batch.

    For each image it returns the probabilities, and whether it is unlike all training images.
    """
    if known is None:
        forward = compiler.forward(predictor.part)
    else:
        encoder, neighbourhood = known[0].compile(compiler), known[1]

    def evaluate(squares: torch.Tensor) -> list[tuple[np.ndarray, bool | None]]:
        squares = squares.contiguous(memory_format=predictor.device.layout)
        if known is None:
            return [(row, None) for row in predictor.predict_proba_tensor(squares, forward)]
        features, probabilities = encoder.encode_batch(squares)
        return list(zip(probabilities, neighbourhood.find_unlike(features).tolist(), strict=True))

    return evaluate


def _escape_formula(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text
