"""The ``predict`` command: classify files, folders and archives, and print or write the results."""

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
    list_images,
    make_unpack_folder,
    predict_images,
    to_csv,
)
from finetune_core.evaluation.prediction.neighbours import (
    Known,
    compute_neighbourhood,
    load_neighbourhood,
    make_encoder,
    neighbours_mtime,
)
from finetune_core.evaluation.prediction.predictor import Predictor, load_predictor
from finetune_core.exporters.tensors import is_export, load_export
from finetune_core.files import write_output
from finetune_core.formatting import format_percent, pluralize
from finetune_core.work import with_phase


def predict_targets(
    folder: Path, targets: Sequence[Path], *, look_at_training: bool
) -> tuple[tuple[str, ...], list[ImagePrediction]]:
    """Classify images with a run or with an export.

    Args:
        folder: folder of the run or of the export.
        targets: image files, folders of images, or ZIP or TAR archives of images.
        look_at_training: also embed the training images if that was not done before, to flag images
            unlike them.

    Returns:
        The classes, and the prediction of each image, in order.

    Raises:
        FinetuneError: if there is no network, or a folder or archive cannot be used.
    """
    if is_export(folder):
        if look_at_training:
            raise RunError(
                f"{folder} is an export: it does not know where its training images are. Give the "
                "folder of the run instead."
            )
        predictor, known = load_export(folder), None
    else:
        predictor, known = _load_run(folder, look_at_training)
    with ExitStack() as unpacked, progress_bar() as bar:
        images = [image for target in targets for image in _list_images(target, unpacked, bar)]
        return predictor.classes, show_work(
            bar, with_phase("name", predict_images(predictor, images, known))
        )


def write_table(file: Path, predictions: Sequence[ImagePrediction], classes: Sequence[str]) -> None:
    """Write predictions as CSV, and report the file on stderr.

    Raises:
        ConfigError: if the file cannot be written.
    """
    write_output(file, to_csv(predictions, classes), "csv")
    err.print(escape(f"{pluralize(len(predictions), 'image')} in {file}"))


def print_predictions(result: dict[str, Any]) -> None:
    """Print one line for each of the ``predictions``."""
    for row in result["predictions"]:
        unlike = ", unlike anything in training" if row["unlike"] else ""
        line = f"{row['image']}: {row['class']} ({format_percent(row['probability'])}){unlike}"
        out.print(escape(escape_line(line)))


def prediction_json(
    predictions: Sequence[ImagePrediction], classes: Sequence[str]
) -> dict[str, Any]:
    """Return the predictions as JSON values.

    Returns:
        A dict with ``predictions`` (``image, class, probability, probabilities, unlike``) and
        ``skipped`` (``image, problem``).
    """
    return {
        "predictions": [
            {"image": one.file, **_top_class(one.probabilities, classes), "unlike": one.unlike}
            for one in predictions
            if one.probabilities is not None
        ],
        "skipped": [
            {"image": one.file, "problem": one.problem}
            for one in predictions
            if one.probabilities is None
        ],
    }


def _top_class(probabilities: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    best = int(probabilities.argmax())
    return {
        "class": classes[best],
        "probability": float(probabilities[best]),
        "probabilities": dict(zip(classes, probabilities.tolist(), strict=True)),
    }


def _load_run(folder: Path, look_at_training: bool) -> tuple[Predictor, Known | None]:
    run = open_run(folder)
    predictor = load_predictor(run)
    if not look_at_training and not neighbours_mtime(run):
        return predictor, None
    try:
        encoder_ = make_encoder(predictor)
    except RunError:
        if look_at_training:
            raise
        return predictor, None
    neighbourhood = load_neighbourhood(run, encoder_)
    if neighbourhood is None and look_at_training:
        with progress_bar() as bar:
            neighbourhood = show_work(bar, compute_neighbourhood(run, encoder_))
    return predictor, (encoder_, neighbourhood) if neighbourhood else None


def _list_images(target: Path, unpacked: ExitStack, bar: Any) -> list[tuple[str, Path]]:
    """Return (display name, file) of each image of a target.

    Archives stay unpacked until ``unpacked`` is closed.
    """
    if os.path.isdir(target):  # unlike Path.is_dir, returns False for names that no system takes
        return [(str(target / name), file) for name, file in list_images(target)]
    if is_archive(target.name):
        folder = unpacked.enter_context(make_unpack_folder())
        show_work(bar, unpack_archive(target, target.name, folder), f"Unpacking {target.name}")
        return [(f"{target}/{name}", file) for name, file in list_images(folder)]
    return [(str(target), target)]
