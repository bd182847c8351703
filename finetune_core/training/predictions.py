"""The table that every metric, gallery and comparison is computed from: one row an image that the run did not train on."""

import io
from pathlib import Path

import numpy as np
import pandas as pd

from finetune_core.errors import RunError
from finetune_core.files import write_bytes

_FILE = "predictions.parquet"


def prediction_table(ids: pd.Series, split: str, labels: np.ndarray, logits: np.ndarray) -> pd.DataFrame:
    """``id, split, label, logits`` (float32 ``[classes]`` a row)."""
    return pd.DataFrame({"id": ids.to_numpy(), "split": split, "label": labels, "logits": list(logits.astype(np.float32))})


def save_predictions(run_dir: Path, table: pd.DataFrame) -> None:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_bytes(run_dir / _FILE, buffer.getvalue())


def predictions_changed(run_dir: Path) -> int:
    """When the run's predictions were written, in nanoseconds; 0 when there are none."""
    file = run_dir / _FILE
    return file.stat().st_mtime_ns if file.is_file() else 0


def load_predictions(run_dir: Path) -> pd.DataFrame:
    """The table of a run.

    Raises:
        RunError: when the run has none, or it is damaged.
    """
    path = run_dir / _FILE
    if not path.is_file():
        raise RunError(f"{run_dir} has nothing to evaluate: the run has not ended, or it ended before its first epoch did.")
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged: {error}") from None
