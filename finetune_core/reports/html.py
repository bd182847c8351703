"""Comparison as one self-contained HTML file: to keep, to send, to open without a network."""

from base64 import b64encode
from collections.abc import Sequence

import plotly.graph_objects as go

from finetune_core.evaluation.comparison.arms import Arm, ArmVerdict, sort_by_score
from finetune_core.evaluation.comparison.compare import Comparison
from finetune_core.evaluation.comparison.costs import Cost
from finetune_core.evaluation.comparison.layer_diagnostics import load_layers, representative_run
from finetune_core.evaluation.comparison.measures import ACCURACY, Measure
from finetune_core.evaluation.comparison.pair_text import (
    CLAIMS,
    PairText,
    describe_errors,
    describe_pair,
)
from finetune_core.evaluation.comparison.pairs import Pair, PairVerdict
from finetune_core.evaluation.comparison.pictured import ExplainedImage
from finetune_core.evaluation.comparison.shift import ShiftComparison
from finetune_core.evaluation.comparison.strategies import Interval
from finetune_core.evaluation.comparison.thaw_next import RULE, advise_next_stage
from finetune_core.formatting import (
    accuracy_name,
    format_bytes,
    format_duration,
    format_number,
    format_percent,
    pluralize,
)
from finetune_core.markup import escape_html, paragraphs, table
from finetune_core.runs.design import depends_on_seed, is_baseline

Headed = Sequence[tuple[str, go.Figure]]

# The file may be opened anywhere, so it must not load, send or open anything but its own scripts
# and styles.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: "
    "blob:; base-uri 'none'; form-action 'none'"
)
STANDING_WORDS = {
    "taken": "Take this one",
    "best": "Best so far",
    "alike": "No difference shown",
    "worse": "Worse",
    "better": "Better",
}
_STYLE = (
    "\n"
    ":root { color-scheme: light dark; --ink: #1b2733; --paper: #ffffff; --edge: #d3dfe7; "
    "--soft: #f2f7fa }\n"
    "@media (prefers-color-scheme: dark) { :root { --ink: #e6eef4; --paper: #0f171e; "
    "--edge: #2d3d4a; --soft: #18242e } }\n"
    "body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); "
    "max-width: 1160px; margin: 0 auto; padding: 24px 16px }\n"
    "h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2rem } "
    "h3 { font-size: 1rem }\n"
    ".verdict { background: var(--soft); border: 1px solid var(--edge); border-radius: 10px; "
    "padding: 16px; font-size: 1.1rem }\n"
    ".verdict p { margin: 0 0 4px } summary { cursor: pointer; margin-top: 1rem }\n"
    ".wide { overflow-x: auto } table { border-collapse: collapse; width: 100%; "
    "font-size: 0.9rem }\n"
    "th, td { text-align: left; padding: 6px 12px 6px 0; border-bottom: 1px solid var(--edge); "
    "vertical-align: top }\n"
    "th, td:not(:first-child) { white-space: nowrap }\n"
    "td:first-child { min-width: 180px }\n"
    ".row { display: flex; flex-wrap: wrap; gap: 12px } figure { margin: 0; width: 200px } "
    "figcaption { font-size: 0.9rem; overflow-wrap: anywhere }\n"
    ".figure { background: #ffffff; border: 1px solid var(--edge); border-radius: 10px; "
    "padding: 8px }\n"
)


def arm_verdict_text(verdict: ArmVerdict) -> str:
    """Describe the standing of an arm; say so if only its trained models are compared."""
    joined = (
        f"; {verdict.text}"
        if verdict.kind == "alike"
        else f" by {verdict.text}"
        if verdict.text
        else ""
    )
    text = STANDING_WORDS[verdict.kind] + joined
    if verdict.about == "networks" and verdict.kind != "best":
        return f"{CLAIMS['networks']}: {text[0].lower()}{text[1:]}"
    return text


def report_html(
    comparison: Comparison,
    figures: Headed,
    moved: Headed = (),
    pictures: Sequence[ExplainedImage] = (),
    title: str = "Comparison of runs",
    shift: tuple[ShiftComparison, go.Figure] | None = None,
) -> str:
    """Return the whole comparison as HTML, including plotly's script (about 5 MB).

    Args:
        comparison: the comparison.
        figures: (heading, figure) of the comparison.
        moved: (heading, figure) of the layer diagnostics; empty if they were not measured.
        pictures: images on which networks disagree.
        title: title of the page.
        shift: the same runs on other images, and the figure of both axes.
    """
    from plotly.offline import get_plotlyjs

    parts = [
        f"<h1>{escape_html(title)}</h1>",
        comparison_html(comparison),
        f"<script>{get_plotlyjs()}</script>",
        *(_figure_html(f"figure-{index}", "h2", *figure) for index, figure in enumerate(figures)),
        shift_html(*shift) if shift else "",
        _pictures_html(pictures),
        _layers_html(comparison, moved),
        "<h2>Runs</h2>",
        table(*_runs_table(comparison)),
        f"<p>{escape_html(_METHOD)}</p>",
    ]
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>'
        f"{escape_html(title)}</title><style>{_STYLE}</style>"
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>'


def comparison_html(comparison: Comparison) -> str:
    """Return the verdict, the strategies in a table, and the details as HTML."""
    notes = paragraphs(*footnotes(comparison))
    strategies = f"<h2>Strategies</h2>{table(*arms_table(comparison))}{notes}"
    return f"{_verdict_html(comparison)}{strategies}{_details_html(comparison)}"


def detail_lines(comparison: Comparison) -> list[str]:
    """List what is known besides the verdict and the tables.

    The text on the baseline is left out if the baseline itself is advised.
    """
    advised = comparison.advised
    is_baseline_advised = advised is not None and is_baseline(comparison.arms[advised].config)
    return [
        *([comparison.baseline] if comparison.baseline and not is_baseline_advised else []),
        *comparison.published,
        *comparison.notes,
    ]


_METHOD = (
    "Method: all runs are evaluated on the same images. These trained models (on new images): "
    "exact sign-flip test, which for two models is McNemar's, and paired bootstrap over images; "
    "for macro F1 and log loss 9,999 random flips, and the bootstrap of the measure itself. The "
    "method in general (new images and new seeds): images and seeds are both random (two-way "
    "random effects, Student's t with Satterthwaite's degrees of freedom), with the seeds' "
    "variance pooled over all strategies but those that spread clearly more. Each kind of claim "
    "is corrected over all pairs (Holm), so that at most one in twenty such comparisons of equal "
    "strategies finds any difference. Macro F1 counts by its pseudo-values (Dorfman, Berbaum & "
    "Metz 1992). Made with Thaw."
)

_SEEN = (
    "The clearest images that only one of the two networks classifies correctly. Bright regions "
    "support the predicted class (Grad-CAM, Selvaraju et al. 2017): it shows where, not why, and "
    "coarsely."
)


def arms_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return columns and one row per arm, formatted as text, the best first."""
    measure = comparison.measure
    accuracy = [] if measure is ACCURACY else [accuracy_name(comparison.split)]
    on_gpu = any(arm.cost.device != "cpu" for arm in comparison.arms)
    ensembles = any(arm.ensemble for arm in comparison.arms)
    columns = [
        "Strategy",
        measure.title_on(comparison.split),
        "95 % interval",
        *(["Verdict"] if comparison.arm_verdicts else []),
        *accuracy,
        "Seed numbers",
        "Over seeds",
        *(["Ensemble of the seeds"] if ensembles else []),
        "Time",
        "Without the cache",
        "Trainable",
        "Memory",
        *(["GPU memory"] if on_gpu else []),
        "On disk",
    ]
    verdicts = {verdict.arm: arm_verdict_text(verdict) for verdict in comparison.arm_verdicts}
    rows = []
    for index, arm in sort_by_score(comparison.arms):
        low, high = arm.range
        spread = (
            _explain_no_spread(arm)
            if arm.seed_deviation is None
            else f"{measure.format_value(low)} to {measure.format_value(high)} (± "
            f"{measure.format_difference(arm.seed_deviation)})"
        )
        cost = arm.cost
        rows.append(
            [
                arm.title + (" ★" if index == comparison.advised else ""),
                measure.format_value(arm.score.value),
                f"{measure.format_value(arm.score.low)} to {measure.format_value(arm.score.high)}",
                *([verdicts[index]] if verdicts else []),
                *([format_percent(arm.accuracy.value)] if accuracy else []),
                ", ".join(str(member.run.config.seed) for member in arm.members),
                spread,
                *([_format_ensemble(arm)] if ensembles else []),
                format_duration(cost.seconds),
                _format_uncached_time(cost),
                format_number(cost.trainable_parameters),
                format_bytes(cost.memory_bytes),
                *([_format_gpu_memory(cost)] if on_gpu else []),
                format_bytes(cost.disk_bytes),
            ]
        )
    return columns, rows


def _format_ensemble(arm: Arm) -> str:
    return format_score(arm.measure, arm.ensemble) if arm.ensemble else _explain_no_spread(arm)


def _explain_no_spread(arm: Arm) -> str:
    return "one seed" if depends_on_seed(arm.config) else "the same"


def footnotes(comparison: Comparison) -> list[str]:
    """List the notes that are needed to read the scores of the arms."""
    share = comparison.majority_class
    lines = [comparison.footnote, describe_ensemble(comparison)]
    if share is not None:
        lines.insert(0, f"Always predicting the most frequent class: {format_percent(share)}.")
    return [line for line in lines if line]


def describe_ensemble(comparison: Comparison) -> str:
    """Return the score of the ensemble of a single strategy's seeds as a sentence; else empty."""
    if comparison.ensemble is None:
        return ""
    score = format_score(comparison.measure, comparison.ensemble)
    return (
        f"Ensemble of the {len(comparison.arms)} seeds (mean of their probabilities): "
        f"{comparison.measure.of} {score}."
    )


def format_score(measure: Measure, score: Interval) -> str:
    """Format a score with its interval."""
    return (
        f"{measure.format_value(score.value)} ({measure.format_value(score.low)} to "
        f"{measure.format_value(score.high)})"
    )


def _format_gpu_memory(cost: Cost) -> str:
    if cost.device == "cpu":
        return "none"
    if "," in cost.device:
        return f"trained on {cost.device}"
    return "not measured" if cost.device_bytes is None else format_bytes(cost.device_bytes)


def _format_uncached_time(cost: Cost) -> str:
    if cost.uncached_seconds is None:
        return "not known"
    return (
        format_duration(cost.uncached_seconds)
        if cost.uncached_seconds > cost.seconds
        else "the same"
    )


def pairs_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return (columns, rows) with one row per pair."""
    columns = [
        "Pair",
        f"Difference ({comparison.measure.unit})",
        CLAIMS["strategies"],
        "p, Holm",
        CLAIMS["networks"],
        "p, Holm (models)",
        "McNemar p",
        "Uncertainty",
    ]
    rows = [
        [
            f"{comparison.arms[pair.a].title} − {comparison.arms[pair.b].title}",
            pair.measure.format_difference(pair.difference),
            _format_interval(pair, pair.strategies) if pair.strategies else "not compared yet",
            _format_p_value(pair.strategies.holm_p) if pair.strategies else "–",
            _format_interval(pair, pair.networks),
            _format_p_value(pair.networks.holm_p),
            _format_p_value(pair.mcnemar_p),
            describe_errors(pair),
        ]
        for pair in comparison.pairs
    ]
    return columns, rows


def _format_interval(pair: Pair, verdict: PairVerdict) -> str:
    _, low, high = pair.measure.to_difference(
        verdict.claim.gain, verdict.claim.low, verdict.claim.high
    )
    return f"{pair.measure.format_difference(low)} to {pair.measure.format_difference(high)}"


def _format_p_value(p: float) -> str:
    return "under 0.001" if p < 0.001 else f"{p:.2g}"


def _runs_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            member.run.run_id,
            arm.title,
            str(member.run.config.seed),
            format_percent(member.accuracy.value),
            format_duration(member.cost.seconds),
        ]
        for arm in comparison.arms
        for member in arm.members
    ]
    return [
        "Run",
        "Strategy",
        "Seed",
        f"{accuracy_name(comparison.split)} on {pluralize(comparison.images, 'image')}",
        "Time",
    ], rows


def _verdict_html(comparison: Comparison) -> str:
    answer, *others = comparison.verdict.lines
    return f'<div class="verdict"><p><b>{escape_html(answer)}</b></p>{paragraphs(*others)}</div>'


def _details_html(comparison: Comparison) -> str:
    lines = "".join(
        f"<li>{_pair_html(describe_pair(comparison.arms, pair))}</li>" for pair in comparison.pairs
    )
    pairs = f"<ul>{lines}</ul>{table(*pairs_table(comparison))}" if lines else ""
    text = paragraphs(*detail_lines(comparison))
    if not (text or pairs):
        return ""
    return f"<details><summary>Details</summary>{text}{pairs}</details>"


def _pair_html(text: PairText) -> str:
    return "<br>".join(
        f"<b>{title}</b>: {escape_html(getattr(text, claim))}" for claim, title in CLAIMS.items()
    )


def _layers_html(comparison: Comparison, figures: Headed) -> str:
    """Return the layer diagnostics that were measured, and which stage to thaw next."""
    known = [
        (arm, layers)
        for arm in comparison.arms
        if (layers := load_layers(representative_run(arm.runs)))
    ]
    if not known:
        return f"<h2>Layer diagnostics</h2><p>{escape_html(_NOT_MEASURED)}</p>"
    lines = []
    for arm, layers in known:
        advice = advise_next_stage(layers)
        lines.append(
            f"<li><b>{escape_html(arm.title)}</b>: {escape_html(advice.what)}. "
            f"{escape_html(advice.reason)}</li>"
        )
    figures_html = "".join(
        _figure_html(f"moved-{index}", "h3", *figure) for index, figure in enumerate(figures)
    )
    return (
        f"<h2>Layer diagnostics</h2><h3>Which stage to thaw next</h3><p>{escape_html(RULE)}</p><ul>"
        f"{''.join(lines)}</ul>{figures_html}"
    )


def shift_html(found: ShiftComparison, figure: go.Figure | None = None) -> str:
    """Return the verdict on the other images, and both axes, as HTML.

    Args:
        found: the comparison on both axes.
        figure: figure of both axes, for a page that includes plotly's script.
    """
    on = f"On {pluralize(found.shifted.images, 'image')} of {found.other.described}."
    figure_html = (
        _figure_html("shifted", "h3", "In-distribution against shifted", figure) if figure else ""
    )
    content = (
        f"{paragraphs(on)}{_verdict_html(found.shifted)}{figure_html}{table(*found.to_rows())}"
        f"{paragraphs(*found.describe_left_out())}{_details_html(found.shifted)}"
    )
    return f"<h2>Distribution shift</h2>{content}"


_NOT_MEASURED = (
    "Not measured when this report was made: Compare measures it when asked, and then a new "
    "report holds it."
)


def _pictures_html(pictures: Sequence[ExplainedImage]) -> str:
    if not pictures:
        return ""
    rows = []
    for picture in pictures:
        images = "".join(
            f'<figure><img src="data:image/jpeg;base64,{b64encode(jpeg).decode()}" '
            f'alt="{escape_html(caption)}" width="200">'
            f"<figcaption>{escape_html(caption)}</figcaption></figure>"
            for jpeg, caption in picture.pictures
        )
        rows.append(f'<p><b>{escape_html(picture.title)}</b></p><div class="row">{images}</div>')
    return f"<h2>Disagreements</h2><p>{escape_html(_SEEN)}</p>{''.join(rows)}"


def _figure_html(name: str, level: str, heading: str, figure: go.Figure) -> str:
    # Without automatic margins plotly cuts off labels at the thin margins of a page.
    styled = (
        go.Figure(figure)
        .update_xaxes(automargin=True)
        .update_yaxes(automargin=True)
        .update_layout(template="plotly_white")
    )
    html = styled.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        config={"displaylogo": False, "responsive": True},
    )
    return f'<{level}>{escape_html(heading)}</{level}><div class="figure">{html}</div>'
