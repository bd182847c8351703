"""What the ``inspect`` command does: looks at a data set, and says what is in it."""

from collections.abc import Mapping
from typing import Any

from finetune_core.commands.input import kept_split, resolved
from finetune_core.commands.terminal import print_inspection, print_json, progress_bar, show_work
from finetune_core.config import make_config
from finetune_core.data.dataset import Dataset, index_dataset
from finetune_core.data.edits import load_edits
from finetune_core.data.findings import Finding, unanswered
from finetune_core.inspection.deep import DeepReport, inspect_deeply
from finetune_core.work import in_phase


def inspected(
    data: str, split: Mapping[str, str], backbone: str | None, *, as_is: bool
) -> tuple[Dataset, list[Finding], DeepReport | None]:
    """The data set, what is to be said of it, and what the features of a backbone tell, where one is named.

    Raises:
        FinetuneError: when it cannot be read or split so.
    """
    folder = resolved(data)
    config = make_config(kept_split(folder, as_is) | dict(split) | {"data": folder})
    edits = () if as_is else load_edits(folder)
    with progress_bar() as bar:
        indexing = index_dataset(folder, **config.split_settings, edits=edits)
        dataset = show_work(bar, in_phase("index", indexing))
        report = show_work(bar, inspect_deeply(dataset, backbone)) if backbone else None
    return dataset, unanswered([*dataset.findings, *(report.findings if report else ())], edits), report


def print_inspected(dataset: Dataset, findings: list[Finding], report: DeepReport | None, as_json: bool) -> None:
    """All of it, for people or as one JSON object."""
    if as_json:
        print_json(_to_json(dataset, findings, report))
    else:
        print_inspection(dataset, findings, report)


def _to_json(dataset: Dataset, findings: list[Finding], report: DeepReport | None) -> dict[str, Any]:
    widths, heights = dataset.table["width"], dataset.table["height"]
    told = {
        "data": str(dataset.root),
        "images": len(dataset.table),
        "classes": list(dataset.classes),
        "counts": {name: row.to_dict() for name, row in dataset.counts().iterrows()},
        "splits": dataset.table["split"].value_counts().to_dict(),
        "given_splits": dataset.given_splits,
        "width": [int(widths.min()), int(widths.max())],
        "height": [int(heights.min()), int(heights.max())],
        "fingerprint": dataset.fingerprint,
        "edits": [edit.model_dump() for edit in dataset.edits],
        "findings": [finding.to_json() for finding in findings],
    }
    return told | ({"deep": report.to_json()} if report else {})
