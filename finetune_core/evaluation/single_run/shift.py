"""Predictions of a run's best network for another data set with the same classes.

Each data set is predicted once.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from finetune_core.data.checks import join_names
from finetune_core.data.pixels import Pixels, decode_pixels
from finetune_core.data.same_classes import ClassMatch, match_classes
from finetune_core.data.splits import SHIFTED
from finetune_core.errors import DataError
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.evaluation.single_run.copies import KnownCopies, find_known_copies, images_key
from finetune_core.evaluation.single_run.other_data import OtherData, index_other_data
from finetune_core.evaluation.single_run.shift_files import (
    Copies,
    Shift,
    list_runs_without_shift,
    save_shift,
)
from finetune_core.runs.store import Run
from finetune_core.training.data_pipeline.answers import compute_outputs
from finetune_core.training.devices.device import Device
from finetune_core.training.devices.turn import run_on_idle_device
from finetune_core.training.evaluation import compute_logits
from finetune_core.training.predictions import (
    FINAL_PRECISION,
    prediction_table,
    predictions_mtime,
)
from finetune_core.work import Work, with_phase, with_subject


def predict_shifted(runs: Sequence[Run], data: str, roots: Sequence[Path] = ()) -> Work[str]:
    """Predict another data set with several runs, and store the predictions in their directories.

    An idle GPU is used if there is one. Runs that have predicted the data set in its current state
    are skipped.

    Args:
        runs: the runs.
        data: the data set as a person names it (``resolve_data``); edits made on the Dataset page
            count.
        roots: if given, data outside of these folders is refused, and such images are left out.

    Yields:
        Steps of the phases ``unpack``, ``index``, ``copies``, ``decode`` and ``evaluate``; for
        several runs, each with the run as the subject.

    Returns:
        The data set's fingerprint.

    Raises:
        DataError: if the data set cannot be read, has none of a run's classes, or nothing but
            copies of its own images.
        FinetuneError: if a run has no network or no predictions, or its directory cannot be written
            to.
    """
    other = yield from index_other_data(data, roots)
    known: dict[str, KnownCopies] = {}
    for run in list_runs_without_shift(runs, other.fingerprint):
        work = _predict_and_save(run, other, known, roots)
        yield from (with_subject(run.run_id, work) if len(runs) > 1 else work)
    return other.fingerprint


def _predict_and_save(
    run: Run, other: OtherData, known: dict[str, KnownCopies], roots: Sequence[Path]
) -> Work[None]:
    """Predict the data set with one run, and store the predictions.

    Args:
        run: the run.
        other: the data set.
        known: copies that were found before, by ``images_key``.
        roots: if given, data outside of these folders is refused.
    """
    classes = run.started["classes"]
    matched = match_classes(classes, other.table["class"].unique())
    if not matched.labels:
        raise DataError(
            f"{other.data} has none of the classes of {run.run_id} ({join_names(classes)}): its "
            f"own are {join_names(matched.unknown)}. Rename its folders, or rename its classes on "
            "the Dataset page."
        )
    key = images_key(run)
    if key not in known:
        known[key] = yield from find_known_copies(run, other, roots)
    has_class = other.table["class"].isin(list(matched.labels)).to_numpy()
    rows = np.flatnonzero(has_class & ~known[key].own)
    if not len(rows):
        raise DataError(
            f"Every image of {other.data} that has a class of {run.run_id} is an exact copy of "
            "one of its own images: there is nothing to evaluate on."
        )
    shift = _make_shift(run, other, matched, known[key].count_copies(has_class))
    yield from run_on_idle_device(
        partial(_predict, run, other, rows, matched, shift), FINAL_PRECISION
    )


def _make_shift(run: Run, other: OtherData, matched: ClassMatch, copies: Copies) -> Shift:
    counts = other.table["class"].value_counts()
    return Shift(
        other.data,
        other.fingerprint,
        # Read before the network: if the run is trained on meanwhile, the stamp is out of date.
        predictions_mtime(run.run_dir),
        list(run.started["classes"]),
        matched.respelled,
        {name: int(counts[name]) for name in matched.unknown},
        other.unreadable,
        copies,
        without_own=True,
    )


def _predict(
    run: Run, other: OtherData, rows: np.ndarray, matched: ClassMatch, shift: Shift, device: Device
) -> Work[None]:
    predictor = load_predictor(run, device)
    info = predictor.network.info
    keys = other.table["content"].to_numpy(np.uint64)
    decoding = decode_pixels(other.paths, keys, rows, info.get_resize(predictor.image_size))
    pixels: Pixels = yield from with_phase("decode", decoding)
    rows = np.setdiff1d(rows, list(pixels.failed))
    if not len(rows):
        raise DataError(f"None of the images in {other.data} can be decoded.")

    def answer(inputs: torch.Tensor) -> np.ndarray:
        return compute_logits(predictor.network.model, inputs, predictor.device)

    logits = yield from compute_outputs(
        pixels, rows, info, predictor.image_size, answer, "evaluate"
    )
    table = other.table.iloc[rows]
    labels = table["class"].map(matched.labels).to_numpy(np.int64)
    save_shift(
        run,
        replace(shift, unreadable=shift.unreadable + len(pixels.failed)),
        prediction_table(table["id"], SHIFTED, labels, logits),
    )
