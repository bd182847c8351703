import json

import pytest

from finetune_core.config import make_config
from finetune_core.errors import RunError
from finetune_core.evaluation.comparison.arms import arm_titles, find_differing_settings
from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.comparison.costs import (
    run_cost,
    run_depth,
    timeline,
    trunk_rate,
    usual_cost,
)
from finetune_core.reports.build import build_report, plot_comparison
from finetune_core.reports.html import arms_table
from tests.documents import missing_in_reference
from tests.evaluation.simulated import IMAGES, draw_correct, find_pair


def test_runs_become_arms_pairs_and_advice(three_strategies):
    result = compare_runs(three_strategies).to_json()
    assert (result["split"], result["images"]) == ("test", IMAGES)
    assert [(arm["arm"], arm["seeds"], arm["trained_stages"]) for arm in result["arms"]] == [
        ("Feature extraction", [0, 1], 1),
        ("Last block", [0, 1], 2),
        ("Full fine-tuning", [0, 1], 4),
    ]
    assert [run["run_id"] for run in result["runs"]] == [run.run_id for run in three_strategies]
    assert find_pair(result, "Last block", "Full fine-tuning")["different"]
    assert not find_pair(result, "Last block", "Feature extraction")["different"]
    assert result["advised"] == "Feature extraction"
    assert all(
        name in result["answer"] for name in ("feature extraction", "last block", f" {IMAGES} ")
    )
    assert result["verdict"] == " ".join(result[line] for line in ("answer", "size", "action"))
    for pair in result["pairs"]:
        assert pair["ci_low"] <= pair["difference"] <= pair["ci_high"]
        assert pair["holm_p"] >= pair["p"]
    json.dumps(result, allow_nan=False)


def test_every_field_is_in_the_json_reference(three_strategies):
    result = compare_runs(three_strategies).to_json()
    [run, *_], [arm, *_], [pair, *_] = result["runs"], result["arms"], result["pairs"]
    assert not missing_in_reference({*result, *run, *arm, *pair, *pair["networks"]})


def test_averages_have_no_precision_of_a_training_to_differ_in():
    bf16, fp32 = (make_config({"data": "x", "precision": one}) for one in ("bf16", "fp32"))
    average = make_config(
        {"data": "x", "precision": "fp32", "averaged": {"how": "soup", "runs": ["a", "b"]}}
    )
    assert find_differing_settings([bf16, average]) == ["averaged"]
    assert find_differing_settings([bf16, fp32, average]) == ["precision", "averaged"]


@pytest.mark.parametrize("other", [{"names": "other"}, {"data": "/elsewhere"}, {"images": 300}])
def test_runs_on_different_images_are_refused_by_name(make_run, other):
    one = make_run(draw_correct(0.9))
    two = make_run(draw_correct(0.9)[: other.pop("images", IMAGES)], strategy="full", **other)
    with pytest.raises(RunError, match=f"not evaluated on the same images.*{two.run_id}"):
        compare_runs([one, two])


def test_without_test_images_of_all_the_validation_images_are_used_and_that_is_said(make_run):
    """A stopped run has not seen the test images."""
    stopped = make_run(draw_correct(0.8), strategy="full", tested=False, status="stopped")
    compared = compare_runs([make_run(draw_correct(0.9)), stopped])
    assert (compared.split, compared.images) == ("val", IMAGES)
    assert "optimistic" in compared.notes[0]
    assert {arm.title: (len(arm.members), arm.unfinished) for arm in compared.arms} == {
        "Last block": (1, None),
        "Full fine-tuning · stopped after 2 of 10 epochs": (1, "stopped after 2 of 10 epochs"),
    }
    assert any(
        "stopped after 2 of 10 epochs" in note and "seed 0" in note for note in compared.notes
    )
    assert all(arm.title.lower() in compared.verdict.answer for arm in compared.arms)


def test_the_same_seed_again_is_no_second_seed(make_run):
    first, again = make_run(draw_correct(0.9)), make_run(draw_correct(0.9))
    other = make_run(draw_correct(0.8), strategy="full")
    compared = compare_runs([first, again, other])
    assert [len(arm.members) for arm in compared.arms] == [1, 1]
    (note,) = (note for note in compared.notes if first.run_id in note)
    assert "later run has the same settings" in note


def test_costs_come_from_the_folder(make_run):
    run = make_run(draw_correct(0.9), seconds=12.0)
    result = run_cost(run, 0.1)
    assert (result.seconds, result.memory_bytes, result.disk_bytes) == (12.0, 7, 1000)
    assert result.trainable_parameters == 100
    assert result.uncached_seconds == pytest.approx(12.0 + 2 * 250 * 0.1 - 2.0)
    assert [row["seconds"] for row in timeline(run)] == [5.0, 7.0]
    assert run_cost(run).uncached_seconds is None


def test_memory_that_was_used_again_is_taken_from_the_forecast(make_run):
    first, second = (
        make_run(draw_correct(0.9), seed=seed, forecast={"memory_bytes": size})
        for seed, size in ((0, 5), (1, 900))
    )
    assert [run_cost(run).memory_bytes for run in (first, second)] == [7, 900]
    assert usual_cost([run_cost(first), run_cost(second)]).memory_bytes == 900


def test_what_the_cache_saved_follows_from_the_deepest_cut_that_was_timed(make_run):
    rates = {"feature_extraction": None, "last_block": 0.1, "last_two_blocks": 0.05, "full": None}
    runs = [
        make_run(draw_correct(0.9), strategy=name, trunk_rate=rate) for name, rate in rates.items()
    ]
    head, *_, full = runs
    assert [trunk_rate([run], runs) for run in runs] == [0.1, 0.1, 0.05, 0.0]
    assert trunk_rate([head], [head, full]) is None
    assert run_cost(full, 0.0).uncached_seconds == run_cost(full, 0.0).seconds


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"strategy": "last_block"}, (2, "block2", True)),
        ({"strategy": "full"}, (4, "stem", True)),
        ({"strategy": "custom", "cut": "block1"}, (3, "block1", True)),
        ({"strategy": "bias_only"}, (4, "stem", False)),
        ({"strategy": "first_block"}, (4, "stem", False)),
    ],
)
def test_depth_of_the_cut(make_run, settings, expected):
    result = run_depth(make_run(draw_correct(0.9), **settings))
    assert (result.trained_stages, result.first_stage, result.whole) == expected


def test_titles_say_what_tells_the_arms_apart_and_no_more():
    def titles(*settings):
        return arm_titles([make_config({"data": "x"} | one) for one in settings])

    full = {"strategy": "full"}
    assert titles({}, full | {"learning_rate": 0.1}) == ["Last block", "Full fine-tuning"]
    assert titles({"learning_rate": 0.1}, {"learning_rate": 0.01}) == [
        "Last block · learning rate 0.1",
        "Last block · learning rate 0.01",
    ]
    assert titles({"backbone": "resnet18"}, {"train_fraction": 0.25}) == [
        "Last block · resnet18 · 100 % of the data",
        "Last block · efficientnet_lite0 · 25 % of the data",
    ]
    assert titles({"strategy": "custom", "cut": "layer3"}) == ["Custom from layer3 on"]
    assert titles({"from_run": "/at/home/runs/earlier"}, {}) == [
        "Last block · from run earlier",
        "Last block · from no run",
    ]
    assert titles({"mean": (0.5, 0.25, 0)}, {}) == [
        "Last block · mean 0.5, 0.25, 0",
        "Last block · mean None",
    ]


@pytest.mark.train
def test_the_report_is_one_file_that_asks_for_nothing_and_takes_nothing_for_markup(make_run):
    nasty = "</script><img src=x onerror=alert(1)>"
    runs = [make_run(draw_correct(0.9)), make_run(draw_correct(0.8), weights=nasty)]
    compared = compare_runs(runs)
    assert nasty in compared.arms[1].title
    page = build_report(compared)
    assert nasty not in page
    assert "<img src=x" not in page
    assert "Content-Security-Policy" in page
    own = page.replace("https://plot.ly", "")
    assert 'src="http' not in own
    assert "<link" not in own
    assert page.count("Plotly.newPlot(") >= len(plot_comparison(compared))
    assert "beats" in page


def test_a_gpus_memory_has_a_column_of_its_own(make_run):
    on_gpu = make_run(draw_correct(0.9), device="cuda", device_bytes=3 * 10**9)
    here = make_run(draw_correct(0.8), strategy="full")
    columns, rows = arms_table(compare_runs([on_gpu, here]))
    found = [dict(zip(columns, row, strict=True)) for row in rows]
    assert [(row["Memory"], row["GPU memory"]) for row in found] == [
        ("7 B", "3.0 GB"),
        ("7 B", "none"),
    ]
    assert "GPU memory" not in arms_table(compare_runs([here, make_run(draw_correct(0.9))]))[0]
