"""Display of a run: one line in a terminal, and a table of its epochs in a notebook."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune_core.formatting import format_duration, format_percent
from finetune_core.markup import escape_html, paragraphs, table

_EPOCH_COLUMNS = (
    "Epoch",
    "Training loss",
    "Training accuracy",
    "Validation loss",
    "Validation accuracy",
)


def describe_run(result: Mapping[str, Any]) -> str:
    """Describe a run in one line, from its row of ``summarize_run``."""
    parts = [f"{result['status']}, {result['backbone']}, {result['strategy']}"]
    if result["best_epoch"]:
        parts.append(
            f"best epoch {result['best_epoch']} of {result['epochs']}, validation accuracy "
            f"{format_percent(result['val_accuracy'])}"
        )
    elif result["val_accuracy"] is not None:
        parts.append(f"validation accuracy {format_percent(result['val_accuracy'])}")
    if result["test_accuracy"] is not None:
        parts.append(f"test accuracy {format_percent(result['test_accuracy'])}")
    if result["seconds"] is not None:
        parts.append(format_duration(result["seconds"]))
    return ", ".join(parts)


def render_run(
    run_id: str, run_dir: Path, result: Mapping[str, Any], epochs: Sequence[Mapping[str, Any]]
) -> str:
    """Describe a run as HTML, with a table of its epochs."""
    rows = [
        (
            row["epoch"],
            f"{row['train_loss']:.4f}",
            format_percent(row["train_accuracy"]),
            f"{row['val_loss']:.4f}",
            format_percent(row["val_accuracy"]),
        )
        for row in epochs
    ]
    head = f"<p><b>{escape_html(run_id)}</b>: {escape_html(describe_run(result))}</p>"
    return (
        head
        + (table(_EPOCH_COLUMNS, rows) if rows else "")
        + paragraphs(result["message"], run_dir)
    )
