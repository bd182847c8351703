import json

import numpy as np

from finetune_core import figures

EPOCHS = [{"epoch": n, "val_loss": 1 / n, "val_accuracy": 1 - 1 / n} for n in (1, 2, 3)]
STEPS = [{"epoch": 1 + n // 1000, "step": 1 + n % 1000, "epoch_loss": 1.0, "epoch_accuracy": n / 3000} for n in range(3000)]


def rows_of(chart):
    spec = json.loads(chart.to_json())
    return [row for rows in spec["datasets"].values() for row in rows]


def test_training_curve_shows_both_splits_and_stays_small():
    rows = rows_of(figures.training_curve("accuracy", STEPS, EPOCHS, 1000, 3))
    training = [row for row in rows if row["series"] == "Training"]
    validation = [(row["epoch"], row["value"]) for row in rows if row["series"] == "Validation"]
    assert len(training) <= 600
    assert training[-1]["epoch"] == 3.0
    assert validation == [(row["epoch"], row["val_accuracy"]) for row in EPOCHS]


def test_curves_work_before_anything_has_happened():
    figures.training_curve("loss", [], [], 10, 5).to_json()
    figures.compared_curve("loss", []).to_json()


def test_confusion_heatmap_keeps_the_counts_and_escapes_names():
    figure = figures.confusion_heatmap(np.array([[3, 1], [0, 0]]), ["<b>a</b>", 'say "x"'])
    heat = figure.data[0]
    assert np.array(heat.z).tolist() == [[0.75, 0.25], [0.0, 0.0]]
    assert np.array(heat.text).tolist() == [["3", "1"], ["", ""]]
    assert figure.layout.xaxis.ticktext[0] == "&lt;b&gt;a&lt;/b&gt;"
    assert figure.layout.xaxis.ticktext[1] == 'say "x"'


def test_bars_and_counts_take_any_names():
    figures.probability_bars(["<i>", "🐸"], [0.7, 0.3]).to_json()
    figure = figures.class_counts({"train": [3, 4], "val": [1, 1]}, ["1", "1e3"])
    assert [bar.name for bar in figure.data] == ["Training", "Validation"]
