import json

import numpy as np
import pandas as pd
import pytest

from finetune_core.evaluation.single_run.calibration import compute_calibration
from finetune_core.evaluation.single_run.corruptions import CORRUPTIONS
from finetune_core.evaluation.single_run.curves import coverage_curve, one_vs_rest
from finetune_core.evaluation.single_run.metrics import evaluate
from finetune_core.figures.averages import plot_mixing_curve
from finetune_core.figures.calibration import plot_coverage, plot_reliability_diagram
from finetune_core.figures.curves import SMOOTHED, plot_live_comparison, plot_training_curve
from finetune_core.figures.data import plot_class_counts, plot_embedding_map, plot_probe_curve
from finetune_core.figures.evaluation import (
    plot_confusion_matrix,
    plot_precision_recall_curves,
    plot_probabilities,
    plot_robustness,
    plot_roc_curves,
    plot_slices,
)
from finetune_core.figures.style import TRAIN_COLOR, VAL_COLOR
from finetune_core.inspection.learned import Probe

EPOCHS = [{"epoch": n, "val_loss": 1 / n, "val_accuracy": 1 - 1 / n} for n in (1, 2, 3)]
STEPS = [
    {
        "epoch": 1 + n // 1000,
        "step": 1 + n % 1000,
        "images": 8 * (n + 1),
        "epoch_loss": 1.0,
        "epoch_accuracy": n / 3000,
    }
    for n in range(3000)
]


def rows_of(chart):
    spec = json.loads(chart.to_json())
    return [row for rows in spec["datasets"].values() for row in rows]


def test_training_curve_shows_both_splits_and_stays_small():
    rows = rows_of(plot_training_curve("accuracy", STEPS, EPOCHS, 8000, 1000, 3))
    training = [row for row in rows if row["series"] == SMOOTHED]
    validation = [(row["epoch"], row["value"]) for row in rows if row["series"] == "Validation"]
    assert len(training) <= 600
    assert training[-1]["epoch"] == 3.0
    assert validation == [(row["epoch"], row["val_accuracy"]) for row in EPOCHS]


@pytest.mark.parametrize(
    ("epochs", "ticks"),
    [
        (1, [0, 1]),
        (3, [0, 1, 2, 3]),
        (12, [0, 2, 4, 6, 8, 10, 12]),
        (1000, [0, 200, 400, 600, 800, 1000]),
    ],
)
def test_live_curves_count_whole_epochs_and_repeat_no_percentage(epochs, ticks):
    for chart in (
        plot_training_curve("accuracy", STEPS, EPOCHS, 8000, 1000, epochs),
        plot_live_comparison("accuracy", [("a", EPOCHS)], epochs),
    ):
        encoding = chart.to_dict()["layer"][0]["encoding"]
        assert encoding["x"]["axis"]["values"] == ticks
        assert encoding["y"]["axis"]["format"] == "~%"


def test_curves_work_before_anything_has_happened():
    plot_training_curve("loss", [], [], 80, 10, 5).to_json()
    plot_live_comparison("loss", []).to_json()
    plot_probe_curve([], "head").to_json()


def test_confusion_heatmap_keeps_the_counts_and_escapes_names():
    figure = plot_confusion_matrix(np.array([[3, 1], [0, 0]]), ["<b>a</b>", 'say "x"'])
    heat = figure.data[0]
    shades = np.array(heat.z)
    assert shades[0, 0] == 1
    assert 0.25 < shades[0, 1] < 1
    assert shades[1].tolist() == [0, 0]
    assert np.array(heat.text).tolist() == [["3", "1"], ["", ""]]
    assert figure.layout.xaxis.ticktext[0] == "&lt;b&gt;a&lt;/b&gt;"
    assert figure.layout.xaxis.ticktext[1] == 'say "x"'


def test_numbers_of_images_share_one_colour_scale_on_which_a_single_one_is_visible():
    confusion = np.array([[900, 1, 0], [4, 40, 4], [0, 1, 4]])
    shades = np.array(plot_confusion_matrix(confusion, ["a", "b", "c"]).data[0].z)
    for count in (0, 1, 4):
        assert len(set(shades[confusion == count])) == 1, "equal numbers, one shade"
    by_count = [shades[confusion == count][0] for count in (0, 1, 4, 40, 900)]
    assert by_count == sorted(set(by_count))
    assert by_count[0] == 0
    assert by_count[1] > 0.25
    assert by_count[-1] == 1


def test_every_cell_of_the_heatmap_follows_from_its_point():
    confusion = np.array([[5, 1, 0], [2, 6, 0], [0, 3, 7]])
    order = [2, 0, 1]
    figure = plot_confusion_matrix(confusion, ["a", "b", "c"], "predicted", order)
    heat, points = figure.data
    assert list(figure.layout.xaxis.ticktext) == ["c", "a", "b"]
    np.testing.assert_allclose(heat.z, (confusion / confusion.sum(0))[np.ix_(order, order)])
    assert heat.text[0][0] == "100%"
    for x, y, cell, words in zip(points.x, points.y, points.customdata, points.text, strict=True):
        true, predicted = divmod(int(cell), 3)
        assert (order[y], order[x]) == (true, predicted)
        assert words.startswith(
            f"{confusion[true, predicted]} images<br>true: {'abc'[true]}<br>predicted: "
            f"{'abc'[predicted]}"
        )


def test_a_heatmap_of_very_many_classes_has_neither_labels_nor_numbers():
    figure = plot_confusion_matrix(np.eye(80, dtype=int), [f"class {n}" for n in range(80)])
    assert figure.data[0].text is None
    assert figure.layout.xaxis.showticklabels is False


def evaluated(count=200):
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, count)
    logits = random.normal(size=(count, 3)) + np.eye(3)[labels]
    table = pd.DataFrame(
        {"id": range(count), "split": "test", "label": labels, "logits": list(logits)}
    )
    return evaluate(table, ("a", "<b>b</b>", "c")), logits, labels


def test_curves_have_a_line_and_a_band_a_class_in_one_colour():
    result, _, _ = evaluated()
    curves = {
        name: one_vs_rest(result, number, resamples=20)
        for number, name in enumerate(result.classes)
    }
    for figure, step in ((plot_roc_curves(curves), 2), (plot_precision_recall_curves(curves), 3)):
        bands, lines = figure.data[1::step], figure.data[step::step]
        assert [line.name for line in lines] == ["a", "&lt;b&gt;b&lt;/b&gt;", "c"]
        assert [band.fillcolor for band in bands] == [line.line.color for line in lines]
        assert len({line.line.color for line in lines}) == 3
        assert [band.legendgroup for band in bands] == [line.legendgroup for line in lines]
        for band, line in zip(bands, lines, strict=True):
            assert 0 <= min(band.y) < max(line.y) <= max(band.y) <= 1
    chance = plot_precision_recall_curves(curves).data[2::3]
    assert [trace.y[0] for trace in chance] == list(result.per_class["images"] / result.images)
    assert [trace.line.color for trace in chance] == [
        line.line.color for line in plot_precision_recall_curves(curves).data[3::3]
    ]


def test_a_reliability_diagram_shows_both_and_the_intervals_of_the_first():
    result, logits, labels = evaluated()
    bins = {
        "as it is": compute_calibration(logits, labels).bins,
        "scaled": compute_calibration(logits / 3, labels).bins,
    }
    figure = plot_reliability_diagram(bins)
    lines = {
        trace.name: trace
        for trace in figure.data
        if trace.type == "scatter" and trace.mode == "lines+markers"
    }
    assert list(lines) == ["as it is", "scaled"]
    for name, line in lines.items():
        np.testing.assert_array_equal(line.y, bins[name]["accuracy"])
    assert [line.error_y.visible for line in lines.values()] == [True, False]
    np.testing.assert_allclose(
        lines["as it is"].y + lines["as it is"].error_y.array,
        bins["as it is"]["accuracy_high"].to_numpy(),
    )
    coverage = plot_coverage(coverage_curve(result), 0.0, float("nan"))
    assert coverage.data[0].y[-1] == pytest.approx(result.accuracy)


def test_slices_and_robustness_take_any_names_and_reach_to_their_intervals():
    rows = pd.DataFrame(
        {
            "slice": ["<i>", "x" * 50],
            "images": [1200, 3],
            "accuracy": [0.5, 1.0],
            "low": [0.4, 0.3],
            "high": 1.0,
        }
    )
    dots = plot_slices(rows, 0.6, "Test accuracy")
    assert list(dots.layout.yaxis.ticktext) == ["&lt;i&gt; (1,200)", "x" * 23 + "… (3)"]
    assert list(dots.data[0].error_x.arrayminus) == pytest.approx([0.1, 0.7])
    ways = [("none", 0), *((name, severity) for name in CORRUPTIONS for severity in (1, 2, 3))]
    rows = pd.DataFrame(ways, columns=["corruption", "severity"]).assign(
        accuracy=0.5, low=0.4, high=0.6
    )
    lines = plot_robustness(
        rows, {name: one.title for name, one in CORRUPTIONS.items()}, "Test accuracy"
    ).data
    assert [line.name for line in lines] == [one.title for one in CORRUPTIONS.values()]
    assert all(len(line.x) == 4 and line.x[0] == 0 for line in lines)


def test_bars_and_counts_take_any_names():
    plot_probabilities(["<i>", "🐸"], [0.7, 0.3]).to_json()
    figure = plot_class_counts({"train": [3, 4], "val": [1, 1]}, ["1", "1e3"])
    assert [bar.name for bar in figure.data] == ["Training", "Validation"]


def places(**columns):
    count = len(next(iter(columns.values())))
    return pd.DataFrame(
        {"id": [f"a/{n}.png" for n in range(count)], "x": np.arange(count) * 1.0, "y": 0.0}
        | columns
    )


def test_a_map_has_a_point_an_image_that_carries_its_id():
    figure = plot_embedding_map(
        places(label=[0, 1, 0, 1, 1]), "label", {0: "cats", 1: "<b>dogs</b>"}
    )
    assert [trace.name for trace in figure.data] == ["cats", "&lt;b&gt;dogs&lt;/b&gt;"]
    assert [trace.customdata[:, 0].tolist() for trace in figure.data] == [
        ["a/0.png", "a/2.png"],
        ["a/1.png", "a/3.png", "a/4.png"],
    ]
    assert figure.data[1].x.tolist() == [1.0, 3.0, 4.0]
    assert figure.data[0].marker.color != figure.data[1].marker.color
    figure.to_json()


def test_a_map_by_split_has_the_colours_that_splits_have_everywhere():
    names = {"train": "Training", "val": "Validation", "test": "Test"}
    figure = plot_embedding_map(places(split=["val", "train", "train"]), "split", names)
    colours = {trace.name: trace.marker.color for trace in figure.data}
    # no test images, no legend for them
    assert colours == {"Training": TRAIN_COLOR, "Validation": VAL_COLOR}


def test_on_a_map_of_many_classes_no_two_look_alike():
    figure = plot_embedding_map(
        places(label=range(60)), "label", {n: f"class {n}" for n in range(60)}
    )
    assert len({(trace.marker.color, trace.marker.symbol) for trace in figure.data}) == 60


def test_a_map_takes_any_names_and_shortens_long_ones():
    strange = places(label=[0, 1]).assign(id=["<img src=x>/1.png", "b" * 200])
    figure = plot_embedding_map(strange, "label", {0: "🐸" * 40, 1: '"&'})
    assert figure.data[0].text == ("&lt;img src=x&gt;/1.png",)
    assert len(figure.data[1].text[0]) == 60
    assert figure.data[1].customdata[0, 0] == "b" * 200  # the id itself stays whole
    assert len(figure.data[0].name) == 18


@pytest.mark.parametrize(("cut", "cold"), [("stem", 0), ("layer2", 2), ("head", 3)])
def test_a_probe_curve_is_cold_before_the_cut_and_warm_from_it_on(cut, cold):
    probes = [Probe("stem", 0.5, 0.05), Probe("layer1", 0.75, 0.04), Probe("layer2", 0.999, 0.001)]
    line = plot_probe_curve(probes, cut).data[0]
    assert list(line.x) == ["stem", "layer1", "layer2"]
    assert list(line.y) == [0.5, 0.75, 0.999]
    assert list(line.error_y.array) == [0.05, 0.04, 0.001]
    assert list(line.text)[:2] == ["50.0%", "75.0%"]
    colours = list(line.marker.color)
    assert len(set(colours[:cold])) <= 1
    assert len(set(colours[cold:])) <= 1
    assert not set(colours[:cold]) & set(colours[cold:])


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_bars_of_a_reliability_diagram_sit_over_their_bins(binning):
    _, logits, labels = evaluated()
    bins = compute_calibration(logits, labels, binning).bins
    figure = plot_reliability_diagram(
        {"as it is": bins, "scaled": compute_calibration(logits / 3, labels, binning).bins}
    )
    bar = next(trace for trace in figure.data if trace.type == "bar")
    np.testing.assert_allclose(bar.x - bar.width / 2, bins["low"])
    np.testing.assert_allclose(bar.x + bar.width / 2, bins["high"])
    np.testing.assert_array_equal(bar.y, bins["images"])
    points = next(
        trace for trace in figure.data if trace.name == "as it is" and trace.type == "scatter"
    )
    assert all(
        low <= x <= high for low, x, high in zip(bins["low"], points.x, bins["high"], strict=True)
    )


@pytest.mark.parametrize(
    ("chosen", "corners"),
    [
        ((0, 2), (-0.5, 0.5, 0.5, 1.5)),
        ((2, None), (-0.5, 2.5, -0.5, 0.5)),
        ((None, 1), (1.5, 2.5, -0.5, 2.5)),
    ],
)
def test_the_chosen_cell_row_or_column_is_outlined_where_it_stands(chosen, corners):
    figure = plot_confusion_matrix(
        np.eye(3, dtype=int), ["a", "b", "c"], order=[2, 0, 1], chosen=chosen
    )
    (outline,) = figure.layout.shapes
    assert (outline.x0, outline.x1, outline.y0, outline.y1) == corners
    assert outline.line.width >= 3
    assert not plot_confusion_matrix(np.eye(3, dtype=int), ["a", "b", "c"]).layout.shapes


def test_a_share_that_is_not_all_does_not_read_100_percent():
    cells = plot_confusion_matrix(np.array([[999, 1], [0, 5]]), ["a", "b"], "true").data[0].text
    assert np.array(cells).tolist() == [["99%", "1%"], ["", "100%"]]


def test_mixing_curve_marks_the_chosen_coefficient_and_shows_other_data_sets():
    tenths = range(11)
    curve = [{"coefficient": n / 10, "accuracy": 0.5 + n / 50, "loss": 1.0} for n in tenths]
    figure = plot_mixing_curve(curve, 0.4)
    assert list(figure.data[0].x) == [point["coefficient"] for point in curve]
    assert list(figure.data[0].y) == [point["accuracy"] for point in curve]
    assert figure.layout.shapes[0].x0 == figure.layout.shapes[0].x1 == 0.4
    assert figure.layout.annotations[0].text == "chosen: 0.4"
    night = [point | {"accuracy": 0.2} for point in curve]
    other = {"data": "/pictures/night", "images": 9, "curve": night}
    figure = plot_mixing_curve(curve, 0.4, [other])
    assert [trace.name for trace in figure.data] == ["validation", "shifted: night"]
    assert figure.data[0].line.dash != figure.data[1].line.dash
    low, high = figure.layout.yaxis.range
    assert low <= 0.2 <= 0.7 <= high
