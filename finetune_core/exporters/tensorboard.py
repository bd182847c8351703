"""Event files for TensorBoard."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_core.errors import ExportError
from finetune_core.exporters.source import get_shareable_settings
from finetune_core.runs.history import History
from finetune_core.runs.store import Run, summarize_run

_PREFIX = "events.out.tfevents."
_RESULTS = ("val_accuracy", "val_loss", "test_accuracy")

Scalar = tuple[str, float, int, float]  # tag, value, step, seconds since 1970


def write_events(run: Run, folder: Path) -> dict[str, Any]:
    """Write event files of a run.

    ``folder`` gets the curves by step and by stage, the settings and the results. Its
    subdirectories ``train`` and ``validation`` get the curves by epoch. Times are those of the
    run. In long runs the older steps are thinned out, as in ``History``.

    Raises:
        ExportError: if tensorboard is not installed or the run has not started.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ExportError(
            "Event files need the package tensorboard, which is not installed: python -m pip "
            "install tensorboard"
        ) from None
    if not run.history.started:
        raise ExportError(
            f"The run {run.run_id} has not begun: it has nothing to show in TensorBoard yet."
        )
    curves = {
        "": iter_step_scalars(run.history),
        "train": iter_epoch_scalars(run.history, "train"),
        "validation": iter_epoch_scalars(run.history, "val"),
    }
    for part, scalars in curves.items():
        with SummaryWriter(folder / part) as writer:
            for tag, value, step, timestamp in scalars:
                writer.add_scalar(tag, value, step, walltime=timestamp)
            if not part:
                _write_settings(writer, run)
        _rename_event_files(folder / part)
    return {}


def iter_step_scalars(history: History) -> Iterator[Scalar]:
    """Yield loss, learning rate and gradient norm of steps, then the measurements by stage.

    Steps are counted over the whole run.
    """
    for row in history.steps:
        for name in ("loss", "learning_rate", "gradient_norm"):
            if name in row and not (name == "gradient_norm" and row["skipped"]):
                yield f"step/{name}", row[name], get_global_step(history, row), row["at"]
    for row in history.measured_steps:
        for stage, values in row["stages"].items():
            for name, value in values.items():
                yield f"{name}/{stage}", value, get_global_step(history, row), row["at"]


def iter_epoch_scalars(history: History, split: str) -> Iterator[Scalar]:
    """Yield loss, accuracy, balanced accuracy and macro F1 of ``train`` or ``val`` by epoch."""
    for row in history.epochs:
        values = {
            "loss": row[f"{split}_loss"],
            "accuracy": row[f"{split}_accuracy"],
            **row.get(f"{split}_scores", {}),
        }
        for name, value in values.items():
            yield f"epoch/{name}", value, row["epoch"], row["at"]


def get_global_step(history: History, row: dict[str, Any]) -> int:
    """Return the number of a step in the whole run, counted from 1."""
    before = (row["epoch"] - 1) * history.started["steps_per_epoch"] if history.started else 0
    return int(before + row["step"])


def _write_settings(writer: Any, run: Run) -> None:
    """Write the settings as text, and as hyperparameters with their results."""
    settings = get_shareable_settings(run)
    writer.add_text(
        "config", "\n".join(f"    {line}" for line in json.dumps(settings, indent=2).splitlines())
    )
    plain = {
        name: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for name, value in settings.items()
    }
    row = summarize_run(run)
    results = {f"result/{name}": row[name] for name in _RESULTS if row[name] is not None}
    writer.add_hparams(plain, results, run_name=".")


def _rename_event_files(folder: Path) -> None:
    """Rename the event files, whose names contain the name of this machine."""
    for position, file in enumerate(sorted(folder.glob(f"{_PREFIX}*"))):
        file.rename(file.with_name(f"{_PREFIX}{position}"))
