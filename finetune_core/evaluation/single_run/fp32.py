"""New predictions of a run's images: by an exported file, or by the best checkpoint in fp32.

The latter is for runs that were evaluated in bf16.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from finetune_core.errors import RunError
from finetune_core.evaluation.prediction.predictor import Predictor, load_predictor
from finetune_core.evaluation.run_images import load_run_images
from finetune_core.evaluation.single_run.evaluate import evaluation_precision, list_predicted_splits
from finetune_core.formatting import pluralize
from finetune_core.runs.locks import hold_lock
from finetune_core.runs.store import Run
from finetune_core.training.data_pipeline.answers import OutputFunction, compute_outputs
from finetune_core.training.devices.device import Device
from finetune_core.training.devices.turn import run_on_idle_device
from finetune_core.training.evaluation import compute_logits
from finetune_core.training.predictions import (
    FINAL_PRECISION,
    load_predictions,
    prediction_table,
    save_predictions,
)
from finetune_core.work import Work


def can_evaluate_in_fp32(run: Run) -> bool:
    """Return whether a run has ended and was evaluated in another precision than fp32."""
    return (
        run.history.end is not None
        and run.is_evaluable
        and evaluation_precision(run) not in (None, FINAL_PRECISION)
    )


def evaluate_in_fp32(run: Run, roots: Sequence[Path] = ()) -> Work[None]:
    """Replace the predictions of an ended run by those of its best checkpoint in fp32.

    The images stay the same. An idle GPU is used if there is one.

    Args:
        run: the run.
        roots: if given, images outside of these folders are refused.

    Raises:
        FinetuneError: if the run is active, its images have changed or cannot be read, or its
            checkpoint is damaged.
    """
    with hold_lock(run.run_dir):
        yield from run_on_idle_device(partial(_evaluate, run, roots), FINAL_PRECISION)


def _evaluate(run: Run, roots: Sequence[Path], device: Device) -> Work[None]:
    predictor = load_predictor(run, device)

    def answer(inputs: torch.Tensor) -> np.ndarray:
        return compute_logits(predictor.network.model, inputs, predictor.device)

    save_predictions(
        run.run_dir, (yield from predict_again(run, predictor, answer, roots)), FINAL_PRECISION
    )


def predict_again(
    run: Run, predictor: Predictor, answer: OutputFunction, roots: Sequence[Path]
) -> Work[pd.DataFrame]:
    """Predict the images that a run was evaluated on with another forward function.

    Args:
        run: the run.
        predictor: supplies classes and preprocessing.
        answer: function from inputs to logits.
        roots: if given, images outside of these folders are refused.

    Returns:
        A table of predictions (``prediction_table``).

    Raises:
        FinetuneError: if the images have changed since the run was trained, or cannot be read.
    """
    images = yield from load_run_images(
        run, dict.fromkeys(list_predicted_splits(run), sys.maxsize), roots
    )
    if not images.unchanged:
        raise RunError(
            f"The images, their labels or their split have changed since {run.run_id} was "
            "trained. Put them back."
        )
    before = load_predictions(run.run_dir, len(predictor.classes))
    rows = np.concatenate(list(images.rows.values()))
    rows = rows[images.dataset.table["id"].iloc[rows].isin(before["id"]).to_numpy()]
    if num_missing := len(before) - len(rows):
        raise RunError(
            f"{pluralize(num_missing, 'image')} of {run.run_id} cannot be read any more. Put them "
            "back."
        )

    logits = yield from compute_outputs(
        images.pixels, rows, predictor.network.info, predictor.image_size, answer, "evaluate"
    )
    table: pd.DataFrame = images.dataset.table.iloc[rows]
    return prediction_table(
        table["id"], table["split"].to_numpy(), table["label"].to_numpy(), logits
    )
