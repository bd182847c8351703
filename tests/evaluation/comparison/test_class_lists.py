"""Runs whose class lists differ, on the same validation and test images."""

import shutil

import pytest

import finetune_core
from finetune_core.errors import ConfigError, RunError
from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.comparison.disagree import find_disagreements
from finetune_core.evaluation.comparison.shift import compare_shift
from finetune_core.evaluation.single_run.shift import predict_shifted
from finetune_core.training.checkpoints.parents import make_averaged_config
from finetune_core.work import finish
from tests.factories import image_folder, tiny_config, train

# Classes of each run that have training images only: all runs are evaluated on the same images.
TRAINING_ONLY = {"aaa": ("aaa",), "zzz": ("zzz",), "both": ("aaa", "zzz")}


@pytest.fixture(scope="module")
def found(home_of_shared_fixtures, tmp_path_factory):
    """Return runs by their names in ``TRAINING_ONLY``, trained on one path; another data set."""
    base = tmp_path_factory.mktemp("classes")
    splits = ("train", "val", "test")
    layout = {f"{split}/{name}": 6 for split in splits for name in ("blue", "red")}
    data = image_folder(base / "data", layout)
    runs = {}
    for key, extra in TRAINING_ONLY.items():
        image_folder(data, {f"train/{name}": 6 for name in extra})
        runs[key] = train(tiny_config(data, epochs=1), base / "runs")
        for name in extra:
            shutil.rmtree(data / "train" / name)
    return runs, image_folder(base / "other", {"blue": 5, "red": 5})


def class_names(run):
    return list(run.started["classes"])


@pytest.mark.train
@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ("aaa", "zzz", "has “zzz” and lacks “aaa”"),
        ("zzz", "aaa", "has “aaa” and lacks “zzz”"),
        ("both", "zzz", "lacks “aaa”"),
        ("zzz", "both", "has “aaa”"),
    ],
)
def test_runs_with_other_classes_are_refused_and_the_classes_are_named(found, one, other, said):
    runs, images = found
    pair = [runs[one], runs[other]]
    assert class_names(pair[0]) != class_names(pair[1])
    fingerprint = finish(predict_shifted(pair, str(images)))
    for compare in (
        compare_runs,
        lambda runs: compare_runs(runs, "log_loss"),
        lambda runs: compare_runs(runs, on=fingerprint),
        lambda runs: compare_shift(runs, fingerprint),
        lambda runs: find_disagreements(*runs),
        finetune_core.compare,
    ):
        with pytest.raises(RunError, match="different classes") as caught:
            compare(pair)
        assert said in str(caught.value)
        assert pair[1].run_id in str(caught.value)


def test_ensembles_name_the_classes_that_differ(found):
    runs, _ = found
    with pytest.raises(ConfigError) as caught:
        make_averaged_config("ensemble", [runs["both"].run_dir, runs["zzz"].run_dir])
    said = f"its classes are not those of {runs['both'].run_id}: it lacks “aaa”"
    assert said in caught.value.problems["averaged"]


def test_the_order_of_the_classes_counts(make_run):
    cats, dogs = make_run([True] * 9), make_run([True] * 9, classes=("dog", "cat"), seed=1)
    with pytest.raises(RunError, match="the same classes in another order"):
        compare_runs([cats, dogs])
