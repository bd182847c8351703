import json

import numpy as np
import pandas as pd
import pytest

from finetune_core.figures.curves import compared_curve, training_curve
from finetune_core.figures.data import class_counts, feature_map, probe_curve
from finetune_core.figures.judged import confusion_heatmap, probability_bars
from finetune_core.figures.style import TRAIN_COLOR, VAL_COLOR
from finetune_core.inspection.learned import Probe

EPOCHS = [{"epoch": n, "val_loss": 1 / n, "val_accuracy": 1 - 1 / n} for n in (1, 2, 3)]
STEPS = [{"epoch": 1 + n // 1000, "step": 1 + n % 1000, "epoch_loss": 1.0, "epoch_accuracy": n / 3000} for n in range(3000)]


def rows_of(chart):
    spec = json.loads(chart.to_json())
    return [row for rows in spec["datasets"].values() for row in rows]


def test_training_curve_shows_both_splits_and_stays_small():
    rows = rows_of(training_curve("accuracy", STEPS, EPOCHS, 1000, 3))
    training = [row for row in rows if row["series"] == "Training"]
    validation = [(row["epoch"], row["value"]) for row in rows if row["series"] == "Validation"]
    assert len(training) <= 600
    assert training[-1]["epoch"] == 3.0
    assert validation == [(row["epoch"], row["val_accuracy"]) for row in EPOCHS]


def test_curves_work_before_anything_has_happened():
    training_curve("loss", [], [], 10, 5).to_json()
    compared_curve("loss", []).to_json()


def test_confusion_heatmap_keeps_the_counts_and_escapes_names():
    figure = confusion_heatmap(np.array([[3, 1], [0, 0]]), ["<b>a</b>", 'say "x"'])
    heat = figure.data[0]
    assert np.array(heat.z).tolist() == [[0.75, 0.25], [0.0, 0.0]]
    assert np.array(heat.text).tolist() == [["3", "1"], ["", ""]]
    assert figure.layout.xaxis.ticktext[0] == "&lt;b&gt;a&lt;/b&gt;"
    assert figure.layout.xaxis.ticktext[1] == 'say "x"'


def test_bars_and_counts_take_any_names():
    probability_bars(["<i>", "🐸"], [0.7, 0.3]).to_json()
    figure = class_counts({"train": [3, 4], "val": [1, 1]}, ["1", "1e3"])
    assert [bar.name for bar in figure.data] == ["Training", "Validation"]


def places(**columns):
    count = len(next(iter(columns.values())))
    return pd.DataFrame({"id": [f"a/{n}.png" for n in range(count)], "x": np.arange(count) * 1.0, "y": 0.0} | columns)


def test_a_map_has_a_point_an_image_that_carries_its_id():
    figure = feature_map(places(label=[0, 1, 0, 1, 1]), "label", {0: "cats", 1: "<b>dogs</b>"})
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
    figure = feature_map(places(split=["val", "train", "train"]), "split", names)
    colours = {trace.name: trace.marker.color for trace in figure.data}
    assert colours == {"Training": TRAIN_COLOR, "Validation": VAL_COLOR}  # no test images, no legend for them


def test_on_a_map_of_many_classes_no_two_look_alike():
    figure = feature_map(places(label=range(60)), "label", {n: f"class {n}" for n in range(60)})
    assert len({(trace.marker.color, trace.marker.symbol) for trace in figure.data}) == 60


def test_a_map_takes_any_names_and_shortens_long_ones():
    strange = places(label=[0, 1]).assign(id=["<img src=x>/1.png", "b" * 200])
    figure = feature_map(strange, "label", {0: "🐸" * 40, 1: '"&'})
    assert figure.data[0].text == ("&lt;img src=x&gt;/1.png",)
    assert len(figure.data[1].text[0]) == 60
    assert figure.data[1].customdata[0, 0] == "b" * 200  # the id itself stays whole
    assert len(figure.data[0].name) == 18


@pytest.mark.parametrize(("cut", "cold"), [("stem", 0), ("layer2", 2), ("head", 3)])
def test_a_probe_curve_is_cold_before_the_cut_and_warm_from_it_on(cut, cold):
    probes = [Probe("stem", 0.5, 0.05), Probe("layer1", 0.75, 0.04), Probe("layer2", 0.999, 0.001)]
    line = probe_curve(probes, cut).data[0]
    assert list(line.x) == ["stem", "layer1", "layer2"]
    assert list(line.y) == [0.5, 0.75, 0.999]
    assert list(line.error_y.array) == [0.05, 0.04, 0.001]
    assert list(line.text)[:2] == ["50.0%", "75.0%"]
    colours = list(line.marker.color)
    assert len(set(colours[:cold])) <= 1
    assert len(set(colours[cold:])) <= 1
    assert not set(colours[:cold]) & set(colours[cold:])


def test_a_probe_curve_without_probes_is_drawn():
    probe_curve([], "head").to_json()
