"""A run's events -> event files for TensorBoard, so that people can use the viewer they know."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_core.errors import ExportError
from finetune_core.exporters.source import shared_settings
from finetune_core.runs.history import History
from finetune_core.runs.store import Run, summary

_PREFIX = "events.out.tfevents."
_RESULTS = ("val_accuracy", "val_loss", "test_accuracy")

Scalar = tuple[str, float, int, float]  # tag, value, step, seconds since 1970


def write_events(run: Run, folder: Path) -> dict[str, Any]:
    """Event files: curves by step and by stage, settings and results in ``folder``; by epoch in its ``train`` and ``validation``.

    Of long runs the older steps are thinned out, as ``History`` has them. Times are those of the run.

    Raises:
        ExportError: when tensorboard is not installed, or the run has not begun.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ExportError(
            "Event files need the package tensorboard, which is not installed: python -m pip install tensorboard"
        ) from None
    if not run.history.started:
        raise ExportError(
            f"The run {run.run_id} has not begun: it has nothing to show in TensorBoard yet."
        )
    curves = {
        "": by_step(run.history),
        "train": by_epoch(run.history, "train"),
        "validation": by_epoch(run.history, "val"),
    }
    for part, scalars in curves.items():
        with SummaryWriter(folder / part) as writer:
            for tag, value, step, at in scalars:
                writer.add_scalar(tag, value, step, walltime=at)
            if not part:
                _describe(writer, run)
        _rename(folder / part)
    return {}


def by_step(history: History) -> Iterator[Scalar]:
    """Loss, learning rate and gradient norm of single steps, counted over the whole run; the same and the update by stage."""
    for row in history.steps:
        for name in ("loss", "learning_rate", "gradient_norm"):
            if name in row and not (name == "gradient_norm" and row["skipped"]):
                yield f"step/{name}", row[name], step_of(history, row), row["at"]
    for row in history.measured:
        for stage, values in row["stages"].items():
            for name, value in values.items():
                yield f"{name}/{stage}", value, step_of(history, row), row["at"]


def by_epoch(history: History, split: str) -> Iterator[Scalar]:
    """Loss, accuracy, balanced accuracy and macro F1 of ``train`` or ``val``, epoch by epoch."""
    for row in history.epochs:
        values = {
            "loss": row[f"{split}_loss"],
            "accuracy": row[f"{split}_accuracy"],
            **row.get(f"{split}_scores", {}),
        }
        for name, value in values.items():
            yield f"epoch/{name}", value, row["epoch"], row["at"]


def step_of(history: History, row: dict[str, Any]) -> int:
    """A step counted from 1 over the whole run."""
    before = (row["epoch"] - 1) * history.started["steps_per_epoch"] if history.started else 0
    return int(before + row["step"])


def _describe(writer: Any, run: Run) -> None:
    """The settings, as text and as hyperparameters with what came of them."""
    settings = shared_settings(run)
    writer.add_text(
        "config", "\n".join(f"    {line}" for line in json.dumps(settings, indent=2).splitlines())
    )
    plain = {
        name: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for name, value in settings.items()
    }
    row = summary(run)
    results = {f"result/{name}": row[name] for name in _RESULTS if row[name] is not None}
    writer.add_hparams(plain, results, run_name=".")


def _rename(folder: Path) -> None:
    """The names that TensorBoard's writer gives hold the name of this machine."""
    for position, file in enumerate(sorted(folder.glob(f"{_PREFIX}*"))):
        file.rename(file.with_name(f"{_PREFIX}{position}"))
