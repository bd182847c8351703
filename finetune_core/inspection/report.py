"""Results of an inspection of a data set, in one object that prints itself."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_core.data.dataset import Dataset
from finetune_core.data.edits import describe_edits
from finetune_core.data.findings import KINDS, Finding
from finetune_core.formatting import SPLIT_TITLES, format_percent, pluralize
from finetune_core.markup import paragraphs, table

if TYPE_CHECKING:  # an inspection without features needs no torch
    from finetune_core.inspection.deep import DeepReport


@dataclass(frozen=True)
class Inspection:
    """A data set, its findings, and the analysis of its features.

    ``deep`` is None if nobody asked for that analysis.
    """

    dataset: Dataset
    findings: tuple[Finding, ...]
    deep: "DeepReport | None"

    def to_text(self) -> str:
        """Describe the number and sizes of the images, and the origin of the split."""
        dataset, widths, heights = (
            self.dataset,
            self.dataset.table["width"],
            self.dataset.table["height"],
        )
        origin = "the split is part of the data" if dataset.given_splits else "Thaw makes the split"
        return (
            f"{pluralize(len(dataset.table), 'image')} in "
            f"{pluralize(len(dataset.classes), 'class', 'classes')}, "
            f"{widths.min()}×{heights.min()} to {widths.max()}×{heights.max()} pixels; {origin}."
        )

    def describe_edits(self) -> str:
        """Describe the edits made by hand; empty if there are none."""
        return f"Changes: {describe_edits(self.dataset.edits)}." if self.dataset.edits else ""

    def class_rows(self) -> tuple[list[str], list[list[str]]]:
        """Return (columns, rows) with one row per class: its images by split."""
        counts = self.dataset.count_images()
        return ["Class", *counts.columns], [
            [str(name), *(f"{count:,}" for count in row)] for name, row in counts.iterrows()
        ]

    def finding_rows(self) -> list[tuple[str, str]]:
        """Return (severity, description) of each finding."""
        return [
            (finding.severity, f"{KINDS[finding.kind].title}. {finding.message}")
            for finding in self.findings
        ]

    def probe_rows(self) -> tuple[list[str], list[list[str]]]:
        """Return (columns, rows) with one row per stage; no rows without probes."""
        probes = self.deep.probes if self.deep else ()
        rows = [
            [probe.stage, f"{format_percent(probe.accuracy)} ± {format_percent(probe.error)}"]
            for probe in probes
        ]
        return ["Stage", "Validation accuracy of a linear probe"], rows

    def describe_advice(self) -> str:
        """Return the strategy that the probes suggest, in sentences; empty without probes."""
        suggestion = self.deep.suggestion if self.deep else None
        if self.deep is None or suggestion is None:
            return ""
        named = f" Suggested: {self.deep.strategy}." if self.deep.strategy else ""
        return suggestion.reason + named

    def describe_shifts(self) -> list[str]:
        """Describe the AUC of a classifier between each split and the training images."""
        auc = self.deep.auc if self.deep else {}
        return [
            f"Training against {SPLIT_TITLES[split].lower()} images, separated by features: AUC "
            f"{auc_of_split:.2f} (0.5: chance level)."
            for split, auc_of_split in auc.items()
        ]

    def __repr__(self) -> str:
        return f"<Inspection: {self.to_text()} {pluralize(len(self.findings), 'finding')}>"

    def _repr_html_(self) -> str:
        findings = (
            table(("Severity", "Finding"), self.finding_rows())
            if self.findings
            else paragraphs("Nothing looks wrong.")
        )
        parts = [
            paragraphs(self.to_text(), self.describe_edits()),
            table(*self.class_rows()),
            findings,
        ]
        if self.deep and self.deep.probes:
            parts += [table(*self.probe_rows()), paragraphs(self.describe_advice())]
        return "".join(parts) + paragraphs(*self.describe_shifts())

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as ``inspect --json`` prints them."""
        dataset, widths, heights = (
            self.dataset,
            self.dataset.table["width"],
            self.dataset.table["height"],
        )
        values = {
            "data": str(dataset.root),
            "images": len(dataset.table),
            "classes": list(dataset.classes),
            "counts": {name: row.to_dict() for name, row in dataset.count_images().iterrows()},
            "splits": dataset.split_counts,
            "given_splits": dataset.given_splits,
            "width": [int(widths.min()), int(widths.max())],
            "height": [int(heights.min()), int(heights.max())],
            "fingerprint": dataset.fingerprint,
            "edits": [edit.model_dump() for edit in dataset.edits],
            "findings": [finding.to_json() for finding in self.findings],
        }
        return values | ({"deep": self.deep.to_json()} if self.deep else {})
