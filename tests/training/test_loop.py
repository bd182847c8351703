"""Tests of the training loop: the order of its events, what repeats, and what ends it."""

import itertools

import numpy as np
import pytest
import torch

from finetune_core.errors import TrainingError
from finetune_core.models.network import build_network
from finetune_core.training import evaluation, events, loop
from finetune_core.training.checkpoints.files import load_checkpoint, load_tensors
from finetune_core.training.loop import StopRequested, fit
from finetune_core.training.predictions import load_predictions
from tests.factories import HUES, TINY_BACKBONE, image_folder, tiny_config
from tests.training.fits import ends_epoch, ends_step, fit_all, fit_until, only

# SqueezeNet has dropout, and no BatchNorm to rescue it.
SQUEEZENET = {
    "backbone": "squeezenet1_1",
    "weights": "none",
    "image_size": 64,
    "strategy": "full",
    "epochs": 1,
}


def test_trunk_statistics_do_not_drift_in_the_live_model(tmp_path, monkeypatch):
    """The checkpoint leaves the trunk out: the audit within the run looks at live tensors."""
    original = loop.apply_strategy

    def careless(strategy, stages, model, epoch):
        original(strategy, stages, model, epoch)
        model.train()  # the classic tutorial's mistake

    monkeypatch.setattr(loop, "apply_strategy", careless)
    with pytest.raises(AssertionError, match="frozen tensors have changed"):
        fit_all(tiny_config(strategy="feature_extraction", epochs=1, cache="off"), tmp_path)


def same_tensors(one, other):
    (ours, _), (theirs, _) = load_tensors(one, "last"), load_tensors(other, "last")
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.train
def test_the_same_seed_gives_identical_weights_and_another_does_not(tmp_path):
    augmented = {"augmentation": "random_resized_crop", "strategy": "last_two_blocks", "epochs": 1}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        fit_all(tiny_config(**augmented, seed=seed), tmp_path / name)
    assert same_tensors(tmp_path / "a", tmp_path / "b")
    assert not same_tensors(tmp_path / "a", tmp_path / "c")


@pytest.mark.train
def test_a_run_with_dropout_repeats_whatever_other_threads_draw(tmp_path):
    """Other threads draw, for example a page that builds a network meanwhile."""
    assert "Dropout" in str(build_network("squeezenet1_1", "none", 3, 0).model)
    config = tiny_config(**SQUEEZENET)
    fit_all(config, tmp_path / "alone")
    (tmp_path / "disturbed").mkdir()
    for event in fit(config, tmp_path / "disturbed"):
        if isinstance(event, events.StepEnded):
            torch.rand(3)
            build_network(TINY_BACKBONE, "none", 3, event.step, 32)
    assert same_tensors(tmp_path / "alone", tmp_path / "disturbed")


def is_plain(value):
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(inner) for key, inner in value.items())
    if isinstance(value, list):
        return all(is_plain(inner) for inner in value)
    return value is None or type(value) in (str, int, float, bool)


@pytest.mark.train
def test_events_tell_the_story_in_order_and_in_plain_scalars(tmp_path):
    found = fit_all(tiny_config(batch_size=8, weights="none"), tmp_path)
    assert all(is_plain(event.to_json()) for event in found)
    kinds = [kind for kind, _ in itertools.groupby(type(event).__name__ for event in found)]
    result = [kind for kind in kinds if kind != "Progress"]
    assert result[:4] == ["RunStarted", "StepEnded", "EpochEnded", "CheckpointSaved"]
    assert result[-1] == "RunFinished"
    (started,), finished = only(events.RunStarted, found), found[-1]
    assert len(only(events.StepEnded, found)) == 2 * started.steps_per_epoch == 8
    assert started.counts == {"train": 30, "val": 6, "test": 6}
    assert started.class_counts == {"train": [10] * 3, "val": [2] * 3, "test": [2] * 3}
    assert started.numerics == {"tf32": False, "cudnn_benchmark": False}
    assert started.weights == "none"
    assert started.weights_hash == build_network(TINY_BACKBONE, "none", 3, 0, 32).weights_hash
    assert finished.best_epoch in (1, 2)
    best = only(events.EpochEnded, found)[finished.best_epoch - 1]
    assert best.val_accuracy == finished.val_accuracy
    table = load_predictions(tmp_path)
    assert set(table["split"]) == {"val", "test"}
    val = table[table["split"] == "val"]
    right = np.stack(val["logits"].to_numpy()).argmax(1) == val["label"]
    assert right.mean() == finished.val_accuracy
    assert load_checkpoint(tmp_path, "best")[1].epoch == finished.best_epoch


@pytest.mark.parametrize("last", [ends_epoch(1), ends_step(2, 1)], ids=["epoch", "step"])
def test_stop_ends_in_good_order_and_keeps_the_best_epoch(tmp_path, last):
    seen, training = fit_until(tiny_config(epochs=50), tmp_path, last)
    stopped = training.throw(StopRequested())
    assert isinstance(stopped, events.RunStopped)
    assert (stopped.epoch, stopped.best_epoch) == (seen[-1].epoch, 1)
    assert list(training) == []
    assert load_checkpoint(tmp_path, "best")[1].epoch == 1
    table = load_predictions(tmp_path)
    assert (set(table["split"]), len(table)) == ({"val"}, 6)


def test_stop_before_the_first_step_leaves_nothing(tmp_path):
    training = fit(tiny_config(), tmp_path)
    next(training)
    stopped = training.throw(StopRequested())
    assert (type(stopped), stopped.epoch, stopped.best_epoch) == (events.RunStopped, 0, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        pytest.param(
            SQUEEZENET | {"optimizer": "sgd", "learning_rate": 10, "epochs": 30},
            r"learning rate 10.*ten times lower",
            marks=pytest.mark.train,
        ),
        ({"batch_size": 1}, "batch size of 2"),  # BatchNorm on a single image
    ],
    ids=["a loss that is no number", "one image"],
)
def test_what_cannot_train_ends_the_run_in_words(tmp_path, settings, words):
    with pytest.raises(TrainingError, match=words):
        fit_all(tiny_config(**settings), tmp_path)


def test_validation_that_is_no_number_is_said_in_words(tmp_path, monkeypatch):
    def answer(model, inputs, device, size):
        return torch.full((len(inputs), 3), torch.nan), size

    monkeypatch.setattr(evaluation, "compute_logits_in_parts", answer)
    with pytest.raises(TrainingError, match="after epoch 1"):
        fit_all(tiny_config(), tmp_path)
    assert not (tmp_path / "predictions.parquet").exists()


@pytest.mark.parametrize(
    ("optimizer", "schedule"), [("adam", "constant"), ("adamw", "cosine"), ("sgd", "one_cycle")]
)
def test_every_optimizer_trains(tmp_path, optimizer, schedule):
    settings = {"optimizer": optimizer, "schedule": schedule, "weight_decay": 0.01}
    config = tiny_config(**settings, strategy="feature_extraction", epochs=1)
    assert isinstance(fit_all(config, tmp_path)[-1], events.RunFinished)


def test_damaged_images_are_named_and_left_out(tmp_path):
    images = image_folder(tmp_path / "images", dict.fromkeys(HUES, 14))
    config = tiny_config(images, epochs=1)
    victim = sorted((images / "red").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:1500])
    found = fit_all(config, tmp_path / "run")
    (skipped,) = only(events.ImagesSkipped, found)
    assert skipped.count == 1
    assert victim.name in skipped.examples[0]
    (started,) = only(events.RunStarted, found)
    assert sum(started.counts.values()) == started.cache.rows == 41
