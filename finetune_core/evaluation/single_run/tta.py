"""Test-time augmentation: the mean of the probabilities over an image and its mirror image.

The predictions are stored beside the run's own.
"""

import json
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from finetune_core.data.splits import TEST, VAL
from finetune_core.errors import ConfigError, RunError
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.evaluation.single_run.evaluate import evaluation_precision
from finetune_core.evaluation.single_run.fp32 import predict_again
from finetune_core.files import Stamp, file_stamp
from finetune_core.models.ensemble import mean_log_probabilities
from finetune_core.runs.store import Run
from finetune_core.training.devices.device import Device
from finetune_core.training.devices.turn import run_on_idle_device
from finetune_core.training.evaluation import compute_logits
from finetune_core.training.predictions import (
    FINAL_PRECISION,
    Moment,
    predictions_mtime,
    read_fact,
    read_table,
    write_table,
)
from finetune_core.work import Work

FLIPS = "flips"
_FILE = f"tta-{FLIPS}.parquet"
_FACTS = b"thaw.tta"  # metadata key
_LONGEST = 1000  # bytes of that metadata


class _Stamp(TypedDict):
    """Time stamp of the run's own predictions."""

    predictions: Moment


_STAMP = TypeAdapter(_Stamp)


def check_tta(how: str) -> None:
    """Raise if there is no such augmentation.

    Raises:
        ConfigError: if there is none.
    """
    if how != FLIPS:
        raise ConfigError({"tta": f"must be {FLIPS}, not {how!r}"})


def predict_with_flips(run: Run, roots: Sequence[Path] = ()) -> Work[None]:
    """Predict a run's evaluated images and their mirror images, and store the mean probabilities.

    An idle GPU is used if there is one. The run's own predictions stay.

    Args:
        run: the run.
        roots: if given, images outside of these folders are refused.

    Yields:
        Steps of the phases ``index``, ``decode`` and ``evaluate``.

    Raises:
        FinetuneError: if there is no network, the run was not evaluated in fp32, or its images have
            changed or cannot be read.
    """
    if (precision := evaluation_precision(run)) != FINAL_PRECISION:
        raise RunError(
            f"{run.run_id} was evaluated in {precision or 'a precision that is not recorded'}, "
            "and flips are in fp32: evaluate it in fp32 first."
        )
    yield from run_on_idle_device(partial(_predict, run, roots), FINAL_PRECISION)


def load_flip_predictions(run: Run) -> pd.DataFrame | None:
    """Return ``id, split, label, logits`` with flips; the logits are logs of mean probabilities.

    None if flips were not measured since the run was trained.
    """
    path, classes = run.run_dir / _FILE, len(run.started["classes"])
    return _read_predictions(path, file_stamp(path), predictions_mtime(run.run_dir), classes)


def _predict(run: Run, roots: Sequence[Path], device: Device) -> Work[None]:
    changed, predictor = predictions_mtime(run.run_dir), load_predictor(run, device)

    def answer(inputs: torch.Tensor) -> np.ndarray:
        both = [
            compute_logits(predictor.network.model, one, predictor.device)
            for one in (inputs, inputs.flip(-1))
        ]
        return mean_log_probabilities(np.stack(both))

    table = yield from predict_again(run, predictor, answer, roots)
    try:
        write_table(
            run.run_dir / _FILE, table, {_FACTS: json.dumps({"predictions": changed}).encode()}
        )
    except OSError as error:
        raise RunError(
            f"The predictions cannot be kept in {run.run_dir}: {error.strerror}."
        ) from None


@lru_cache(maxsize=16)  # a page asks again whenever it is redrawn
def _read_predictions(
    path: Path, _version: Stamp | None, predictions: int, classes: int
) -> pd.DataFrame | None:
    try:
        facts = read_fact(path, _FACTS)
        if (
            len(facts) > _LONGEST
            or _STAMP.validate_json(facts, strict=True)["predictions"] != predictions
        ):
            return None
        return read_table(path, (VAL, TEST), classes)
    except (OSError, ValueError, RunError):  # missing or damaged: it can be measured again
        return None
