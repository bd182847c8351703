"""Plotly figures with narrow ranges, drawn by plotly itself, on a wide screen and on a phone."""

import re

import numpy as np
import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

from finetune_core.config import make_config
from finetune_core.evaluation.advice.ranking import rank_candidates
from finetune_core.evaluation.comparison.arms import Arm, Member
from finetune_core.evaluation.comparison.costs import Cost, Depth
from finetune_core.evaluation.comparison.layer_diagnostics import Layers, StageChange
from finetune_core.evaluation.comparison.measures import ACCURACY
from finetune_core.evaluation.comparison.strategies import Interval
from finetune_core.evaluation.single_run.calibration import compute_calibration
from finetune_core.evaluation.single_run.corruptions import CORRUPTIONS
from finetune_core.evaluation.single_run.curves import coverage_curve, one_vs_rest
from finetune_core.evaluation.single_run.metrics import evaluate
from finetune_core.figures import calibration as calibration_figures
from finetune_core.figures import comparison, data, evaluation, layer_diagnostics
from finetune_core.figures.advice import plot_probes_by_stage
from finetune_core.inspection.learned import Probe
from finetune_core.runs.history import History
from finetune_core.runs.store import Run
from tests.evaluation.advice.test_ranking import make_probes

STAGES = ("stem", "layer1", "layer2", "head")
PROBES = [Probe("stem", 0.981, 0.003), Probe("layer1", 0.9975, 0.001), Probe("layer2", 1.0, 0.0)]


def arms(folder, accuracies=(0.9925, 0.9962, 1.0), epochs=3):
    """Return an arm for each accuracy, each with a deeper cut and more images than the last."""
    made = []
    for at, accuracy in enumerate(accuracies):
        run_dir = folder / f"run-{at}"
        run_dir.mkdir()
        config = make_config({"data": "/pets", "train_fraction": (at + 1) / len(accuracies)})
        history = History(run_dir)
        history.started = {
            "counts": {"train": at + 1, "val": 50},
            "cache": {"trunk_seconds": 1.0},
            "decode_seconds": 1.0,
        }
        history.epochs = [
            {"epoch": n, "val_accuracy": accuracy - 0.002 / n, "val_loss": 0.1 / n, "seconds": n}
            for n in range(1, epochs + 1)
        ]
        spent = Cost(10.0 + at, 30.0, 1_000_000 * (at + 1), 10**8, None, "cpu", 10**6)
        interval = Interval(accuracy, accuracy - 0.004, min(1.0, accuracy + 0.002))
        member = Member(Run(run_dir, config, history, "finished"), interval, interval, spent)
        made.append(
            Arm(
                f"Arm {at}",
                config,
                (member,),
                interval,
                ACCURACY,
                interval,
                None,
                spent,
                Depth(at + 1, STAGES[-1 - at], True),
            )
        )
    return made


def nearly_perfect():
    """Return 1,000 images of three classes, a few of them predicted as the next class."""
    random = np.random.default_rng(0)
    labels = np.arange(1000) % 3
    logits = np.eye(3)[
        np.where(np.arange(1000) % 250 == 0, (labels + 1) % 3, labels)
    ] * 6 + random.normal(size=(1000, 3))
    table = pd.DataFrame(
        {"id": range(1000), "split": "test", "label": labels, "logits": list(logits)}
    )
    return evaluate(table, ("cat", "dog", "newt")), logits, labels


def figures(folder):
    compare = arms(folder)
    result, logits, labels = nearly_perfect()
    curves = {
        name: one_vs_rest(result, number, resamples=10)
        for number, name in enumerate(result.classes)
    }
    ways = [("none", 0), *((name, severity) for name in CORRUPTIONS for severity in (1, 2, 3))]
    worse = pd.DataFrame(ways, columns=["corruption", "severity"]).assign(
        accuracy=0.995, low=0.99, high=1.0
    )
    slices = pd.DataFrame(
        {
            "slice": ["day", "night"],
            "images": 500,
            "accuracy": [0.996, 1.0],
            "low": 0.99,
            "high": 1.0,
        }
    )
    moves = tuple(
        StageChange(name, at > 1, 0.0004 * at, 1 - 0.002 * at, 0.3, 0.001 * at)
        for at, name in enumerate(STAGES)
    )
    layers = {"one": Layers(moves, tuple(PROBES), 300, 128, 1.0)}
    coverage = coverage_curve(result)
    probed = [
        make_probes("a", *np.linspace(0.985, 0.995, 9)),
        make_probes("b", *np.linspace(0.98, 1.0, 9)),
    ]
    return {
        "accuracies": comparison.plot_accuracies(compare, "test"),
        "curves-loss": comparison.plot_learning_curves("loss", "epoch", compare),
        "curves-accuracy": comparison.plot_learning_curves("accuracy", "epoch", compare),
        "curves-seconds": comparison.plot_learning_curves("accuracy", "seconds", compare),
        **{
            f"pareto-{measure}": comparison.plot_pareto_front(measure, compare, "test")
            for measure in comparison.list_costs(compare)[0]
        },
        "shifted": comparison.plot_shift(
            compare, [Interval(0.98, 0.96, 0.99)] * len(compare), "another camera"
        ),
        "depth": comparison.plot_depth(compare, "test"),
        "data": comparison.plot_training_size(compare, "test"),
        "advice": plot_probes_by_stage(
            rank_candidates(probed), {one.backbone: one.stages for one in probed}
        ),
        "counts": data.plot_class_counts({"train": [2, 1], "val": [1, 1]}, ["cat", "dog"]),
        "probe-curve": data.plot_probe_curve(PROBES, "layer2"),
        "probe-profile": layer_diagnostics.plot_probe_profile(PROBES, STAGES),
        **{
            f"moved-{one.field}": layer_diagnostics.plot_by_stage(one, layers, {"one": 0})
            for one in layer_diagnostics.MEASURES
        },
        "confusion": evaluation.plot_confusion_matrix(
            result.confusion, result.classes, "true", chosen=(0, 1)
        ),
        "bars": evaluation.plot_probabilities(["cat", "dog", "newt"], [0.9998, 0.0002, 0.0]),
        "roc": evaluation.plot_roc_curves(curves),
        "recall-precision": evaluation.plot_precision_recall_curves(curves),
        "slices": evaluation.plot_slices(slices, 0.998, "Test accuracy"),
        "robustness": evaluation.plot_robustness(
            worse, {name: one.title for name, one in CORRUPTIONS.items()}, "Test accuracy"
        ),
        **{
            f"reliability-{binning}": calibration_figures.plot_reliability_diagram(
                {
                    "as it is": compute_calibration(logits, labels, binning).bins,
                    "scaled": compute_calibration(logits / 2, labels, binning).bins,
                }
            )
            for binning in ("width", "mass")
        },
        "coverage": calibration_figures.plot_coverage(
            coverage, 0.9, float(coverage["accuracy"].iloc[0])
        ),
    }


READ = """figure => {
    const box = figure.querySelector('.main-svg').getBoundingClientRect()
    const read = text => {
        const own = text.getBoundingClientRect()
        const outside = own.left < box.left - 1 || own.right > box.right + 1
        return [text.textContent, outside || own.top < box.top - 1 || own.bottom > box.bottom + 1]
    }
    const axes = {}, layout = figure._fullLayout
    for (const name of Object.keys(layout).filter(name => /^[xy]axis\\d*$/.test(name))) {
        const ticks = figure.querySelectorAll(`.${name.replace('axis', '')}tick text`)
        axes[name] = {labels: [...ticks].map(read), range: layout[name].range}
    }
    return axes
}"""


@pytest.fixture
def drawn(page, tmp_path):
    """Draw figures: ``drawn(figures, width)``.

    Returns:
        name -> axis -> labels as ``(text, whether it is cut off)``, and the range.
    """

    def draw(named, width):
        page.set_viewport_size({"width": width, "height": 900})
        parts = [
            figure.update_xaxes(automargin=True)
            .update_yaxes(automargin=True)
            .to_html(
                full_html=False, include_plotlyjs=False, div_id=name, config={"responsive": True}
            )
            for name, figure in named.items()
        ]
        file = tmp_path / "figures.html"
        file.write_text(
            f"<!doctype html><meta charset=utf-8><script>{get_plotlyjs()}</script>{''.join(parts)}",
            "utf-8",
        )
        page.goto(file.as_uri())
        page.wait_for_function(
            f"document.querySelectorAll('.plot-container .main-svg').length >= {len(named)}"
        )
        return {name: page.locator(f"#{name}").evaluate(READ) for name in named}

    return draw


def test_no_figure_repeats_or_cuts_off_a_tick(drawn, tmp_path):
    made = figures(tmp_path)
    for width in (1440, 360):
        for name, axes in drawn(made, width).items():
            for axis, result in axes.items():
                labels = [text for text, _ in result["labels"] if text.strip()]
                where = f"{name}, {axis}, {width} pixels: {labels}"
                assert len(labels) == len(set(labels)), where
                assert not any(cut for _, cut in result["labels"]), where
                if labels and all(label.endswith("%") for label in labels):
                    check_shares(name, labels, result["range"], where)


def check_shares(name, labels, axis_range, where):
    assert len(labels) > 1, where
    shares = [float(label[:-1].replace("\u2212", "-")) for label in labels]
    # weights can change by more than all of their length
    if not name.startswith("moved"):
        assert all(0 <= share <= 100 for share in shares), where
        assert axis_range[1] < 1 or 100 in shares, where


def test_epochs_and_counts_are_whole(drawn, tmp_path):
    named = {}
    for epochs in (1, 3, 7, 40):
        folder = tmp_path / str(epochs)
        folder.mkdir()
        named[f"epochs-{epochs}"] = comparison.plot_learning_curves(
            "loss", "epoch", arms(folder, epochs=epochs)
        )
        named[f"counts-{epochs}"] = data.plot_class_counts({"train": [epochs, 1]}, ["cat", "dog"])
    for name, axes in drawn(named, 1440).items():
        labels = [
            text for text, _ in axes["xaxis" if name.startswith("epochs") else "yaxis"]["labels"]
        ]
        assert len(labels) > 1
        assert all(re.fullmatch(r"\d+", text) for text in labels), f"{name}: {labels}"


LUMINANCE = """color => {
    const linear = part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4
    const parts = color.match(/[\\d.]+/g).slice(0, 3).map(part => linear(part / 255))
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
}"""
TEXTS = f"""texts => texts.filter(text => text.textContent)
    .map(text => ({LUMINANCE})(getComputedStyle(text).fill))"""


def contrast(one, other):
    """Return the contrast of two luminances as defined by WCAG."""
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


@pytest.mark.parametrize("shown", ["images", "true"])
@pytest.mark.parametrize(("dark", "page_luminance"), [(False, 1.0), (True, 0.008)])
def test_numbers_can_be_read_on_every_cell_and_low_shares_are_like_the_page(
    page, drawn, dark, page_luminance, shown
):
    shares = np.arange(1, 20)
    # rows of 20: 1 in 20, 2 in 20 …
    confusion = np.diag(shares) + np.diag(20 - shares[:-1], 1) + np.diag([20 - 19], -18)
    names = [f"{n}" for n in range(19)]
    heat = evaluation.plot_confusion_matrix(confusion, names, shown, dark=dark)
    drawn({"heat": heat}, 1440)
    texts = page.locator("#heat .heatmap-label text, #heat .hm text").evaluate_all(TEXTS)
    stops, colours = zip(*heat.data[0].colorscale, strict=True)
    # plotly: where the scale jumps, what comes after
    stops = np.array(stops) - 1e-9 * np.arange(len(stops))[::-1]
    parts = [[int(colour[at : at + 2], 16) for colour in colours] for at in (1, 3, 5)]
    values = zip(np.ravel(heat.data[0].z), np.ravel(heat.data[0].text), strict=True)
    below = [
        f"rgb({','.join(str(np.interp(value, stops, part)) for part in parts)})"
        for value, text in values
        if text
    ]
    cells = page.evaluate(f"colours => colours.map({LUMINANCE})", below)
    assert len(texts) == len(cells) > 30
    # 4.5 to 1 is enough for text of this size
    assert min(map(contrast, texts, cells)) >= 4.5
    # one image is told from none, one share in twenty is not
    assert (contrast(cells[0], page_luminance) < 1.5) == (shown == "true")
