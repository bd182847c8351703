"""What the ``predict`` command does: classifies files, folders and archives of images, and prints or writes the results."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape

from finetune_core.commands.runs import open_run
from finetune_core.commands.terminal import err, escape_line, out, progress_bar, show_work
from finetune_core.data.archives import is_archive, unpack_archive
from finetune_core.errors import RunError
from finetune_core.evaluation.prediction.batch import (
    ImagePrediction,
    images_below,
    predict_images,
    to_csv,
    unpacking_folder,
)
from finetune_core.evaluation.prediction.neighbours import (
    Known,
    compute_neighbourhood,
    encoder,
    known_neighbourhood,
    neighbours_changed,
)
from finetune_core.evaluation.prediction.predictor import Predictor, load_predictor
from finetune_core.exporters.tensors import is_export, load_export
from finetune_core.files import write_output
from finetune_core.formatting import percent, things
from finetune_core.work import in_phase


def predict_targets(
    folder: Path, targets: Sequence[Path], *, look_at_training: bool
) -> tuple[tuple[str, ...], list[ImagePrediction]]:
    """Classify images with a run, or with one that was exported.

    Args:
        folder: of the run, or of the export.
        targets: image files, folders of them, ZIP or TAR archives of them.
        look_at_training: also run the training images through the network where that was not done before, to tell what is unlike them.

    Returns:
        The classes, and what became of each image, in order.

    Raises:
        FinetuneError: when there is no network, or a folder or archive cannot be used.
    """
    if is_export(folder):
        if look_at_training:
            raise RunError(
                f"{folder} is an export: it does not know where its training images are. Give the "
                "folder of the run instead."
            )
        predictor, known = load_export(folder), None
    else:
        predictor, known = _run(folder, look_at_training)
    with ExitStack() as unpacked, progress_bar() as bar:
        images = [image for target in targets for image in _images(target, unpacked, bar)]
        return predictor.classes, show_work(
            bar, in_phase("name", predict_images(predictor, images, known))
        )


def write_table(file: Path, predictions: Sequence[ImagePrediction], classes: Sequence[str]) -> None:
    """Write what each image is taken for as CSV, and say so.

    Raises:
        ConfigError: when it cannot be written.
    """
    write_output(file, to_csv(predictions, classes), "csv")
    err.print(escape(f"{things(len(predictions), 'image')} in {file}"))


def print_predictions(result: dict[str, Any]) -> None:
    """One line for each of the ``predictions``."""
    for row in result["predictions"]:
        unlike = ", unlike anything in training" if row["unlike"] else ""
        line = f"{row['image']}: {row['class']} ({percent(row['probability'])}){unlike}"
        out.print(escape(escape_line(line)))


def prediction_json(
    predictions: Sequence[ImagePrediction], classes: Sequence[str]
) -> dict[str, Any]:
    """``predictions`` (``image, class, probability, probabilities, unlike``) and ``skipped`` (``image, problem``)."""
    return {
        "predictions": [
            {"image": one.file, **_answer(one.probabilities, classes), "unlike": one.unlike}
            for one in predictions
            if one.probabilities is not None
        ],
        "skipped": [
            {"image": one.file, "problem": one.problem}
            for one in predictions
            if one.probabilities is None
        ],
    }


def _answer(probabilities: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    best = int(probabilities.argmax())
    return {
        "class": classes[best],
        "probability": float(probabilities[best]),
        "probabilities": dict(zip(classes, probabilities.tolist(), strict=True)),
    }


def _run(folder: Path, look_at_training: bool) -> tuple[Predictor, Known | None]:
    run = open_run(folder)
    predictor = load_predictor(run)
    if not look_at_training and not neighbours_changed(run):
        return predictor, None
    try:
        looks = encoder(predictor)
    except RunError:
        if look_at_training:
            raise
        return predictor, None
    near = known_neighbourhood(run, looks)
    if near is None and look_at_training:
        with progress_bar() as bar:
            near = show_work(bar, compute_neighbourhood(run, looks))
    return predictor, (looks, near) if near else None


def _images(target: Path, unpacked: ExitStack, bar: Any) -> list[tuple[str, Path]]:
    """(what to call it, file) of each image of a target; archives are unpacked until ``unpacked`` is closed."""
    if os.path.isdir(target):  # unlike Path's, False for a name that no system takes
        return [(str(target / name), file) for name, file in images_below(target)]
    if is_archive(target.name):
        folder = unpacked.enter_context(unpacking_folder())
        show_work(bar, unpack_archive(target, target.name, folder), f"Unpacking {target.name}")
        return [(f"{target}/{name}", file) for name, file in images_below(folder)]
    return [(str(target), target)]
