"""Reference points of a run's accuracy: majority class, linear probe, best run."""

import json

import pytest

from finetune_core.commands.evaluate import evaluation_json, print_evaluation
from finetune_core.config import make_config
from finetune_core.data.dataset import load_dataset
from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.reference_points import reference_points
from finetune_core.evaluation.run_accuracy import best_run, run_accuracy
from finetune_core.evaluation.single_run.run_evaluation import evaluate_run
from finetune_core.formatting import format_percent
from finetune_core.reports.html import comparison_html
from finetune_core.runs.history import History
from finetune_core.runs.store import Run, RunStore
from tests.factories import copy_run, shared_images, tiny_config, trained_run

COUNTS = {"train": [60, 20], "val": [5, 5], "test": [2, 8]}


@pytest.fixture
def finished(tmp_path):
    """Return ``finished(test, val, …)``, which makes a finished run with these accuracies."""
    made = []

    def make(test=0.8, val=0.8, started=None, status="finished", **settings):
        config = make_config({"data": "/pets", **settings})
        history = History(tmp_path / f"run-{len(made):02d}")
        history.started = {
            "fingerprint": "one",
            "counts": {name: sum(counts) for name, counts in COUNTS.items()},
            "class_counts": COUNTS,
        } | (started or {})
        history.end = {"val_accuracy": val, "val_loss": 1 - val, "test_accuracy": test}
        made.append(Run(history.run_dir, config, history, status))
        return made[-1]

    return make


def list_points(run, *others):
    known = reference_points(run, [run, *others])
    return {label: one.value for label, one in known.items().items()}


def test_the_majority_class_is_that_of_the_training_images(finished):
    run = finished()
    assert list_points(run) == {"Majority class": pytest.approx(0.2)}
    assert reference_points(run, [], "val").majority_class.value == pytest.approx(0.5)


def test_what_an_earlier_version_did_not_record_is_absent(finished):
    run = finished(started={"class_counts": {}})
    assert list_points(run) == {}
    assert reference_points(run, []).to_sentence() == ""


def test_the_probe_is_one_on_the_same_features_of_the_same_images(finished):
    run = finished(0.9, 0.9, seed=1)
    probes = [
        finished(0.60, 0.5, strategy="linear_probe", image_size=64),
        finished(0.61, 0.5, strategy="linear_probe", started={"fingerprint": "other"}),
        finished(0.62, 0.5, strategy="linear_probe", status="failed"),
        finished(0.63, 0.5, strategy="linear_probe", features_from="layer2"),
        finished(0.64, 0.5, strategy="linear_probe", seed=1),
        finished(0.65, 0.5, strategy="linear_probe", seed=0, learning_rate=0.5),
    ]
    assert "Linear probe" not in list_points(run, *probes[:4])
    assert list_points(run, *probes)["Linear probe"] == 0.64
    assert list_points(run, probes[5])["Linear probe"] == 0.65, (
        "a learning rate does not concern it"
    )
    assert "Linear probe" not in list_points(probes[4], *probes)


def test_the_best_run_is_chosen_on_validation_and_reported_on_test_images(finished):
    run, lucky, best = finished(0.80, 0.80), finished(0.99, 0.70), finished(0.85, 0.90)
    assert best_run([run, lucky, best]) is best
    assert list_points(run, lucky, best)["Best by validation"] == 0.85
    assert "Best by validation" not in list_points(best, run, lucky)
    assert "Best by validation" not in list_points(
        run, finished(0.9, 0.99, started={"fingerprint": "other"})
    )


def test_a_best_run_that_is_the_linear_probe_stands_once(finished):
    run, probe = finished(0.7, 0.7), finished(0.8, 0.8, strategy="linear_probe")
    known = reference_points(run, [run, probe])
    assert known.to_text() == "majority class 20.0 %, linear probe 80.0 %"
    assert known.to_json()["best_run"] == {"accuracy": 0.8, "run_id": probe.run_id}


def test_words_name_the_images_and_how_the_best_was_trained(finished):
    run = finished(0.7, 0.7, backbone="resnet18")
    other = finished(0.8, 0.8, strategy="full", backbone="resnet50")
    assert reference_points(run, [run, other]).to_sentence() == (
        "On the same test images: majority class 20.0 %, "
        "best by validation (full fine-tuning, resnet50) 80.0 %."
    )


def test_a_run_is_known_by_its_test_accuracy_where_it_has_one(finished):
    assert run_accuracy(finished(0.7, 0.9)).to_text() == "test accuracy 70.0 %"
    untested = finished(None, 0.9)
    assert run_accuracy(untested).to_text() == "validation accuracy 90.0 %"
    assert reference_points(untested, []).split == "val"


@pytest.mark.train
def test_a_trained_run_records_what_the_majority_class_follows_from(tmp_path, capsys):
    folder = shared_images(red=30, blue=10)
    tuned, probe = tiny_config(folder), tiny_config(folder, strategy="linear_probe")
    run_dir, probe_dir = (copy_run(trained_run(one).run_dir, tmp_path) for one in (tuned, probe))
    run = RunStore(tmp_path).load_run(run_dir)
    table = load_dataset(folder).table
    share = (table.loc[table["split"] == "test", "class"] == "red").mean()
    known = reference_points(run)
    assert known.majority_class.value == pytest.approx(share)
    assert known.linear_probe.run_id == probe_dir.name
    result = evaluate_run(run, "test", None)
    found = json.loads(json.dumps(evaluation_json(result)))["reference_points"]
    assert found == known.to_json()
    assert known.to_sentence() in result._repr_html_()
    print_evaluation(result)
    printed = " ".join(capsys.readouterr().out.split())
    assert known.to_sentence() in printed
    stores = [RunStore(tmp_path).load_run(folder) for folder in (run_dir, probe_dir)]
    compared = compare_runs(stores)
    assert compared.to_json()["majority_class"] == pytest.approx(share)
    footnote = f"Always predicting the most frequent class: {format_percent(share)}."
    assert footnote in comparison_html(compared)
    assert compare_runs(stores, classes=["red"]).majority_class is None
    assert compare_runs(stores, "log_loss").majority_class is None
