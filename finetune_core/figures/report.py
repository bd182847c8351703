"""A comparison as one HTML file: figures, layer diagnostics, and images with Grad-CAM."""

from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go

from finetune_core.evaluation.comparison.compare import Comparison
from finetune_core.evaluation.comparison.layer_diagnostics import Layers, known_layers, measured_run
from finetune_core.evaluation.comparison.pictured import pictured
from finetune_core.evaluation.comparison.report import report_html
from finetune_core.evaluation.comparison.shift import ShiftComparison
from finetune_core.figures.comparison import (
    COSTS,
    Axis,
    accuracies,
    against_shifted,
    by_data,
    by_depth,
    learning_curves,
    offered_costs,
    pareto,
)
from finetune_core.figures.layer_diagnostics import MEASURES as MOVES
from finetune_core.figures.layer_diagnostics import by_stage, probe_profile
from finetune_core.formatting import accuracy_name

TitledFigures = list[tuple[str, go.Figure]]


def whole_report(
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
        comparison_figures(comparison),
        moved_figures(comparison),
        pictured(comparison, roots),
        shift=(shift, _plot_shift(shift)) if shift else None,
    )


def _plot_shift(shift: ShiftComparison) -> go.Figure:
    return against_shifted(
        shift.matched.arms, [arm.score for arm in shift.shifted.arms], shift.other.name
    )


def comparison_figures(comparison: Comparison) -> TitledFigures:
    """Plot accuracy and costs, each figure with its title."""
    arms, split = comparison.arms, comparison.split
    name = accuracy_name(split)
    figures = [
        (f"{comparison.measure.title_on(split)}, with intervals and seeds", accuracies(arms, split))
    ]
    figures += [
        (f"{name} against {COSTS[measure][0].lower()}", pareto(measure, arms, split))
        for measure in offered_costs(arms)[0]
    ]
    figures += [
        (heading, figure)
        for heading, figure in (
            (f"{name} by first stage that trains", by_depth(arms, split)),
            (f"{name} by training set size", by_data(arms, split)),
        )
        if figure
    ]
    axes: tuple[tuple[Axis, str], ...] = (("epoch", "by epoch"), ("seconds", "by time"))
    for axis, title in axes if any(run.history.epochs for arm in arms for run in arm.runs) else ():
        figures += [
            (f"Validation {kind}, {title}", learning_curves(kind, axis, arms))
            for kind in ("loss", "accuracy")
        ]
    return figures


def moved_figures(comparison: Comparison) -> TitledFigures:
    """Plot the layer diagnostics of runs that have them, one set of figures per backbone."""
    by_backbone: dict[str, dict[str, Layers]] = {}
    for arm in comparison.arms:
        if layers := known_layers(measured_run(arm.runs)):
            by_backbone.setdefault(arm.config.backbone, {})[arm.title] = layers
    places = {arm.title: index for index, arm in enumerate(comparison.arms)}
    figures: TitledFigures = []
    for backbone, measured in by_backbone.items():
        first = next(iter(measured.values()))
        names = [stage.name for stage in first.stages]
        mark = f" ({backbone})" if len(by_backbone) > 1 else ""
        if first.probes:
            figures.append((f"Linear probe by layer{mark}", probe_profile(first.probes, names)))
        figures += [(f"{move.title}{mark}", by_stage(move, measured, places)) for move in MOVES]
    return figures
