"""Comparisons that display themselves in a notebook."""

from dataclasses import dataclass

from finetune_core.evaluation.comparison.compare import Comparison
from finetune_core.evaluation.comparison.shift import ShiftComparison
from finetune_core.reports.html import comparison_html, shift_html


@dataclass(frozen=True, repr=False)
class NotebookComparison(Comparison):
    """A comparison with its verdict and tables as HTML."""

    def _repr_html_(self) -> str:
        return comparison_html(self)


@dataclass(frozen=True, repr=False)
class NotebookShiftComparison(ShiftComparison):
    """A comparison on both axes, with the verdicts and tables of both as HTML."""

    def _repr_html_(self) -> str:
        return comparison_html(self.own) + shift_html(self)


def show_comparison(comparison: Comparison) -> NotebookComparison:
    """Return the same comparison, for a notebook."""
    return NotebookComparison(**vars(comparison))


def show_shift(found: ShiftComparison) -> NotebookShiftComparison:
    """Return the same comparison on both axes, for a notebook."""
    return NotebookShiftComparison(
        show_comparison(found.own),
        show_comparison(found.matched),
        show_comparison(found.shifted),
        found.other,
        found.shared,
    )
