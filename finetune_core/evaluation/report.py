"""A comparison as one HTML file that needs nothing else: to keep, to send, to open without a network."""

import html
from base64 import b64encode
from collections.abc import Sequence

import plotly.graph_objects as go

from finetune_core.evaluation.comparison import Comparison
from finetune_core.evaluation.costs import Cost
from finetune_core.evaluation.layers import known_layers
from finetune_core.evaluation.pictured import Pictured
from finetune_core.evaluation.thaw_next import thaw_next
from finetune_core.evaluation.verdicts import errors_in_words, points
from finetune_core.words import duration, number, percent, size, things

# A file from elsewhere must not load, send or open anything: its own scripts and styles are all it has.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
STANDING_WORDS = {"taken": "Take this one", "best": "Best so far", "alike": "No difference shown", "worse": "Worse"}
_STYLE = """
:root { color-scheme: light dark; --ink: #1b2733; --paper: #ffffff; --edge: #d3dfe7; --soft: #f2f7fa }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eef4; --paper: #0f171e; --edge: #2d3d4a; --soft: #18242e } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1160px; margin: 0 auto; padding: 24px 16px }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2rem }
.verdict { background: var(--soft); border: 1px solid var(--edge); border-radius: 10px; padding: 16px; font-size: 1.1rem }
.wide { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-size: 0.9rem }
th, td { text-align: left; padding: 6px 12px 6px 0; border-bottom: 1px solid var(--edge); vertical-align: top }
th, td:not(:first-child) { white-space: nowrap }
.row { display: flex; flex-wrap: wrap; gap: 12px } figure { margin: 0; width: 200px } figcaption { font-size: 0.9rem; overflow-wrap: anywhere }
.figure { background: #ffffff; border: 1px solid var(--edge); border-radius: 10px; padding: 8px }
"""


def report_html(
    comparison: Comparison,
    figures: Sequence[tuple[str, go.Figure]],
    pictures: Sequence[Pictured] = (),
    title: str = "Comparison of runs",
) -> str:
    """The whole comparison: verdict, tables, figures (heading, figure) and pictures, plotly's own script among it (about 5 MB)."""
    from plotly.offline import get_plotlyjs

    parts = [
        f"<h1>{_text(title)}</h1>",
        f'<div class="verdict"><b>{_text(comparison.headline)}</b> {_text(comparison.caveat)}{_standings(comparison)}</div>',
        *(f"<p>{_text(note)}</p>" for note in comparison.notes),
        "<h2>Strategies</h2>",
        _table(*arms_table(comparison)),
        _pairs(comparison),
        f"<script>{get_plotlyjs()}</script>",
        *(_figure(f"figure-{at}", heading, figure) for at, (heading, figure) in enumerate(figures)),
        _next_stages(comparison),
        _pictured(pictures),
        "<h2>Runs</h2>",
        _table(*_runs_table(comparison)),
        f"<p>{_text(_METHOD)}</p>",
    ]
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{_text(title)}</title><style>{_STYLE}</style>'
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>'


_METHOD = (
    "How it was judged: all runs on the same images. Two networks: exact McNemar test and paired bootstrap over images. Strategies with "
    "several seeds: images and seeds both count as luck (two-way random effects, Student's t). Verdicts are corrected over all pairs "
    "(Holm), so that at most one in twenty such comparisons of equal strategies finds any difference. Made with Thaw."
)

_SEEN = (
    "The clearest images that one of the two networks gets right and the other wrong. Bright: what speaks for the class that the network "
    "names (Grad-CAM, Selvaraju et al. 2017): it shows where, not why, and coarsely."
)


def arms_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) with one row an arm, as a person would say it."""
    columns = [
        "Strategy",
        "Accuracy",
        "95 % interval",
        "Seeds",
        "Over seeds",
        "Time",
        "Without the cache",
        "Trainable",
        "Memory",
        "On disk",
    ]
    rows = []
    taken = [one.arm for one in comparison.standings if one.kind == "taken"]
    for at, arm in enumerate(comparison.arms):
        low, high = arm.range
        spread = (
            "one seed" if arm.seed_deviation is None else f"{percent(low)} to {percent(high)} (± {points(arm.seed_deviation)})"
        )
        cost = arm.cost
        rows.append(
            [
                arm.title + (" ★" if at in taken else ""),
                percent(arm.accuracy.value),
                f"{percent(arm.accuracy.low)} to {percent(arm.accuracy.high)}",
                ", ".join(str(member.run.config.seed) for member in arm.members),
                spread,
                duration(cost.seconds),
                _without_cache(cost),
                number(cost.trainable_parameters),
                size(cost.memory_bytes),
                size(cost.disk_bytes),
            ]
        )
    return columns, rows


def _without_cache(cost: Cost) -> str:
    if cost.uncached_seconds is None:
        return "not known"
    return duration(cost.uncached_seconds) if cost.uncached_seconds > cost.seconds else "the same"


def pairs_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) with one row a pair."""
    columns = ["Pair", "Difference (points)", "95 % interval", "Uncertainty (points)", "McNemar p", "p, Holm"]
    rows = [
        [
            f"{comparison.arms[pair.a].title} − {comparison.arms[pair.b].title}",
            points(pair.test.difference),
            f"{points(pair.test.low)} to {points(pair.test.high)}",
            errors_in_words(pair.test),
            _chance(pair.test.mcnemar_p),
            _chance(pair.holm_p),
        ]
        for pair in comparison.pairs
    ]
    return columns, rows


def _chance(p: float) -> str:
    return "under 0.001" if p < 0.001 else f"{p:.2g}"


def _runs_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            member.run.run_id,
            arm.title,
            str(member.run.config.seed),
            percent(member.accuracy.value),
            duration(member.cost.seconds),
        ]
        for arm in comparison.arms
        for member in arm.members
    ]
    return ["Run", "Strategy", "Seed", f"Accuracy on {things(comparison.images, 'image')}", "Time"], rows


def _standings(comparison: Comparison) -> str:
    lines = [
        f"<li><b>{_text(comparison.arms[one.arm].title)}</b> ({STANDING_WORDS[one.kind].lower()}): {_text(one.words)}</li>"
        for one in comparison.standings
    ]
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def _pairs(comparison: Comparison) -> str:
    if not comparison.pairs:
        return ""
    lines = "".join(f"<li>{_text(pair.verdict)}</li>" for pair in comparison.pairs)
    return f"<h2>Pair by pair</h2><ul>{lines}</ul>{_table(*pairs_table(comparison))}"


def _next_stages(comparison: Comparison) -> str:
    """Where what moved was measured."""
    lines = []
    for arm in comparison.arms:
        if layers := known_layers(arm.members[0].run):
            advice = thaw_next(layers, arm.config.backbone)
            what = f"thaw {advice.stage} next" if advice.stage else "nothing more to thaw"
            lines.append(f"<li><b>{_text(arm.title)}</b>: {_text(what)}. {_text(advice.reason)}</li>")
    return f"<h2>Which stage to thaw next</h2><ul>{''.join(lines)}</ul>" if lines else ""


def _pictured(pictures: Sequence[Pictured]) -> str:
    if not pictures:
        return ""
    shown = []
    for one in pictures:
        images = "".join(
            f'<figure><img src="data:image/jpeg;base64,{b64encode(jpeg).decode()}" alt="{_text(words)}" width="200">'
            f"<figcaption>{_text(words)}</figcaption></figure>"
            for jpeg, words in one.pictures
        )
        shown.append(f'<p><b>{_text(one.title)}</b></p><div class="row">{images}</div>')
    return f"<h2>Where they disagree</h2><p>{_text(_SEEN)}</p>{''.join(shown)}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _figure(name: str, heading: str, figure: go.Figure) -> str:
    # By itself, plotly cuts off what the thin margins of a page have no room for.
    whole = go.Figure(figure).update_xaxes(automargin=True).update_yaxes(automargin=True).update_layout(template="plotly_white")
    drawn = whole.to_html(
        full_html=False, include_plotlyjs=False, div_id=name, config={"displaylogo": False, "responsive": True}
    )
    return f'<h2>{_text(heading)}</h2><div class="figure">{drawn}</div>'


def _text(words: str) -> str:
    return html.escape(words)
