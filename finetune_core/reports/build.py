"""A comparison as one HTML file: figures, layer diagnostics, and images with Grad-CAM."""

from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go

from finetune_core.evaluation.comparison.compare import Comparison
from finetune_core.evaluation.comparison.layer_diagnostics import (
    Layers,
    load_layers,
    representative_run,
)
from finetune_core.evaluation.comparison.pictured import explain_disagreements
from finetune_core.evaluation.comparison.shift import ShiftComparison
from finetune_core.figures.comparison import (
    COSTS,
    Axis,
    list_costs,
    plot_accuracies,
    plot_depth,
    plot_learning_curves,
    plot_pareto_front,
    plot_shift,
    plot_training_size,
)
from finetune_core.figures.layer_diagnostics import MEASURES as MOVES
from finetune_core.figures.layer_diagnostics import plot_by_stage, plot_probe_profile
from finetune_core.formatting import accuracy_name
from finetune_core.reports.html import report_html

TitledFigures = list[tuple[str, go.Figure]]


def build_report(
    comparison: Comparison, roots: Sequence[Path] = (), shift: ShiftComparison | None = None
) -> str:
    """Return the report of a comparison as HTML.

    Two networks look at a few images for the report, which takes a moment.

    Args:
        comparison: the comparison.
        roots: the only directories whose images may be read. Empty means all.
        shift: comparison of the same runs on other images.
    """
    return report_html(
        comparison,
        plot_comparison(comparison),
        plot_layer_diagnostics(comparison),
        explain_disagreements(comparison, roots),
        shift=(shift, _plot_shift(shift)) if shift else None,
    )


def _plot_shift(shift: ShiftComparison) -> go.Figure:
    return plot_shift(
        shift.matched.arms, [arm.score for arm in shift.shifted.arms], shift.other.name
    )


def plot_comparison(comparison: Comparison) -> TitledFigures:
    """Plot accuracy and costs, each figure with its title."""
    arms, split = comparison.arms, comparison.split
    name = accuracy_name(split)
    figures = [
        (
            f"{comparison.measure.title_on(split)}, with intervals and seeds",
            plot_accuracies(arms, split),
        )
    ]
    figures += [
        (f"{name} against {COSTS[measure][0].lower()}", plot_pareto_front(measure, arms, split))
        for measure in list_costs(arms)[0]
    ]
    figures += [
        (heading, figure)
        for heading, figure in (
            (f"{name} by first stage that trains", plot_depth(arms, split)),
            (f"{name} by training set size", plot_training_size(arms, split)),
        )
        if figure
    ]
    axes: tuple[tuple[Axis, str], ...] = (("epoch", "by epoch"), ("seconds", "by time"))
    for axis, title in axes if any(run.history.epochs for arm in arms for run in arm.runs) else ():
        figures += [
            (f"Validation {kind}, {title}", plot_learning_curves(kind, axis, arms))
            for kind in ("loss", "accuracy")
        ]
    return figures


def plot_layer_diagnostics(comparison: Comparison) -> TitledFigures:
    """Plot the layer diagnostics of runs that have them, one set of figures per backbone."""
    by_backbone: dict[str, dict[str, Layers]] = {}
    for arm in comparison.arms:
        if layers := load_layers(representative_run(arm.runs)):
            by_backbone.setdefault(arm.config.backbone, {})[arm.title] = layers
    places = {arm.title: index for index, arm in enumerate(comparison.arms)}
    figures: TitledFigures = []
    for backbone, measured in by_backbone.items():
        first = next(iter(measured.values()))
        names = [stage.name for stage in first.stages]
        mark = f" ({backbone})" if len(by_backbone) > 1 else ""
        if first.probes:
            figures.append(
                (f"Linear probe by layer{mark}", plot_probe_profile(first.probes, names))
            )
        figures += [
            (f"{move.title}{mark}", plot_by_stage(move, measured, places)) for move in MOVES
        ]
    return figures
