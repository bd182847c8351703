"""Tests that a run stopped anywhere and resumed ends with the weights of one never stopped."""

import pytest

from finetune_core.errors import RunError
from finetune_core.training import evaluation, events, loop
from finetune_core.training.loop import StopRequested, fit
from finetune_core.training.predictions import load_predictions, predictions_precision
from tests.factories import image_folder, tiny_config
from tests.training.fits import (
    ends_epoch,
    ends_step,
    fit_all,
    fit_until,
    only,
    stop_and_resume,
)

BATCHED = {"batch_size": 10}  # three steps an epoch

SETTINGS = {
    "head, Adam, images prepared otherwise": {
        "strategy": "feature_extraction",
        "mean": (0.1, 0.2, 0.3),
        "std": (0.2, 0.3, 0.4),
        "crop_pct": 0.5,
        "interpolation": "bicubic",
    },
    "low rank, norms, averaged": {
        "strategy": "lora",
        "lora_from": "layer4",
        "lora_norms": "train",
        "ema": 0.9,
    },
    "balanced, blended, everything else": {
        "strategy": "full",
        "mixup": 0.2,
        "cutmix": 1.0,
        "sampling": "balanced",
        "optimizer": "sgd",
        "label_smoothing": 0.1,
        "class_weights": "balanced",
        "clip_norm": 0.5,
        "micro_batch": 4,
        "schedule": "one_cycle",
        "l2_sp": 0.1,
    },
    "last block, SGD, augmented": {
        "optimizer": "sgd",
        "augmentation": "random_resized_crop",
        "views": 2,
    },
    "thawing, AdamW, cosine, fresh versions": {
        "strategy": "linear_probe_then_full",
        "thaw_every": 1,
        "optimizer": "adamw",
        "schedule": "cosine",
        "weight_decay": 0.01,
        "augmentation": "flips",
    },
    "dropout": {
        "backbone": "mobilenet_v3_small",
        "weights": "none",
        "strategy": "last_two_blocks",
    },
}


@pytest.fixture
def check_same(tmp_path, marks):
    """Return a check that a resumed training equals one that was never stopped.

    It is called as ``check_same(config, ending)``.
    """

    def check(config, resumed, ending):
        whole = fit_all(config, tmp_path / "whole")
        wanted, end = whole[-1], ending[-1]
        assert isinstance(end, events.RunFinished)
        assert marks(resumed) == marks(tmp_path / "whole")
        assert load_predictions(resumed).equals(load_predictions(tmp_path / "whole"))
        assert predictions_precision(resumed) == "fp32"
        for key in ("best_epoch", "val_loss", "test_accuracy"):
            assert getattr(end, key) == getattr(wanted, key)
        return whole

    return check


@pytest.mark.train
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(one, marks=[pytest.mark.train] * (not one.startswith("head")))
        for one in SETTINGS
    ],
)
def test_stopped_within_an_epoch_and_resumed_is_the_same_to_the_last_bit(
    tmp_path, name, check_same
):
    config = tiny_config(**BATCHED | SETTINGS[name])
    after = stop_and_resume(config, tmp_path / "stopped", ends_step(2, 1))
    before = check_same(config, tmp_path / "stopped", after)
    (epoch,), wanted = only(events.EpochEnded, after), only(events.EpochEnded, before)[1]
    for key in ("epoch", "train_loss", "train_accuracy", "val_loss"):
        assert getattr(epoch, key) == getattr(wanted, key) is not None
    assert only(events.RunResumed, after) == [events.RunResumed(2, 1)]


@pytest.mark.train
def test_stopped_after_the_last_step_of_an_epoch_is_the_same_to_the_last_bit(tmp_path, check_same):
    config = tiny_config(**BATCHED)
    after = stop_and_resume(config, tmp_path / "stopped", ends_step(1, 3))
    before = check_same(config, tmp_path / "stopped", after)
    memory = [only(events.EpochEnded, found)[-1].memory_bytes for found in (before, after)]
    assert memory[0] == memory[1] > 0


@pytest.mark.train
def test_memory_means_the_same_in_a_first_and_a_second_run(tmp_path):
    def emitted(folder, **settings):
        ended = only(events.EpochEnded, fit_all(tiny_config(**settings), tmp_path / folder))
        return [event.memory_bytes for event in ended]

    first = emitted("first")
    assert first == emitted("second")
    assert min(first) > 0
    assert min(emitted("full", strategy="full")) > max(first)


@pytest.mark.train
@pytest.mark.parametrize(
    ("phase", "precision", "killed"),
    [
        ("validate", "fp32", False),
        ("evaluate", "fp32", True),
        ("evaluate", "bf16", False),
        pytest.param("validate", "bf16", True, marks=pytest.mark.exhaustive),
    ],
)
def test_stopped_or_killed_while_it_validates_or_evaluates(
    native_bf16, tmp_path, monkeypatch, check_same, phase, precision, killed
):
    monkeypatch.setattr(evaluation, "EVENT_SECONDS", 0)
    config = tiny_config(precision=precision)
    _, training = fit_until(
        config,
        tmp_path / "cut",
        lambda event: isinstance(event, events.Progress) and event.phase == phase,
    )
    if killed:
        training.close()  # nothing is written any more
    else:
        assert isinstance(training.throw(StopRequested()), events.RunStopped)
    check_same(config, tmp_path / "cut", list(fit(config, tmp_path / "cut", resume=True)))


@pytest.mark.train
@pytest.mark.parametrize("seconds", [0, loop.CHECKPOINT_SECONDS])
def test_a_process_that_dies_goes_on_from_the_last_checkpoint(
    tmp_path, monkeypatch, check_same, seconds
):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", seconds)
    config = tiny_config(**BATCHED)
    _, training = fit_until(
        config, tmp_path / "killed", ends_epoch(2) if seconds else ends_step(2, 2)
    )
    training.close()  # nothing is written any more
    found = list(fit(config, tmp_path / "killed", resume=True))
    assert events.RunResumed(2, 0 if seconds else 2) in found
    assert [event.epoch for event in only(events.EpochEnded, found)] == [2]  # told again
    check_same(config, tmp_path / "killed", found)


def test_without_a_checkpoint_a_run_starts_again(tmp_path):
    found = fit_all(tiny_config(epochs=1), tmp_path, resume=True)
    assert events.RunResumed(1, 0) in found
    assert isinstance(found[-1], events.RunFinished)


@pytest.mark.train
def test_other_classes_or_images_than_before_are_refused(tmp_path):
    images = image_folder(tmp_path / "images", {"red": 8, "blue": 8})
    config = tiny_config(images)
    _, training = fit_until(config, tmp_path / "run", ends_step(1, 1))
    training.throw(StopRequested())
    image_folder(images, {"red": 9})
    with pytest.raises(RunError, match="The images, their labels or their split have changed"):
        list(fit(config, tmp_path / "run", resume=True))
    image_folder(images, {"yellow": 8})
    with pytest.raises(RunError, match="classes have changed"):
        list(fit(config, tmp_path / "run", resume=True))
