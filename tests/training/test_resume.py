"""A run that is stopped anywhere and resumed ends with the very weights of one that never was."""

from functools import partial

import pytest

from finetune_core.errors import RunError
from finetune_core.training import evaluation, events, loop
from finetune_core.training.loop import StopRequested, fit
from finetune_core.training.predictions import load_predictions, predictions_precision


@pytest.fixture
def config(colour_config):
    return partial(colour_config, batch_size=10, epochs=3)


def whole(config, folder):
    folder.mkdir()
    return list(fit(config, folder))


def stopped_at(config, folder, step):
    """Train until ``step`` steps are done in all, stop, and resume to the end; the events of the second part."""
    folder.mkdir()
    stream, done = fit(config, folder), 0
    for event in stream:
        done += isinstance(event, events.StepEnded)
        if isinstance(event, events.StepEnded) and done == step:
            break
    assert isinstance(stream.throw(StopRequested()), events.RunStopped)
    return list(fit(config, folder, resume=True))


SETTINGS = {
    "head, Adam": {"strategy": "feature_extraction"},
    "last block, AdamW, cosine": {"optimizer": "adamw", "schedule": "cosine", "weight_decay": 0.01},
    "last block, SGD, augmented": {
        "optimizer": "sgd",
        "augmentation": "random_resized_crop",
        "views": 2,
    },
    "everything, fresh versions": {"strategy": "full", "augmentation": "flips", "epochs": 2},
    "balanced, blended": {
        "strategy": "full",
        "mixup": 0.2,
        "cutmix": 1.0,
        "sampling": "balanced",
        "epochs": 2,
    },
    "low rank, norms, averaged": {
        "strategy": "lora",
        "lora_from": "block6",
        "lora_norms": "train",
        "ema": 0.9,
    },
    "dropout": {
        "backbone": "mobilenet_v3_small",
        "weights": "none",
        "strategy": "last_two_blocks",
        "epochs": 2,
    },
}


QUICK = ("head, Adam", "last block, SGD, augmented", "low rank, norms, averaged")


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.train] * (one not in QUICK)) for one in SETTINGS]
)
def test_stopped_and_resumed_is_the_same_to_the_last_bit(config, tmp_path, name, marks):
    settings = config(**SETTINGS[name])
    before = whole(settings, tmp_path / "whole")
    end, per_epoch = (
        before[-1],
        sum(isinstance(e, events.StepEnded) and e.epoch == 1 for e in before),
    )
    for step in (per_epoch, per_epoch + 1):
        folder = tmp_path / f"stopped-{step}"
        found = stopped_at(settings, folder, step)
        assert marks(folder) == marks(tmp_path / "whole"), step
        assert (found[-1].best_epoch, found[-1].val_loss) == (end.best_epoch, end.val_loss)
        assert load_predictions(folder).equals(load_predictions(tmp_path / "whole"))


def test_the_numbers_of_an_epoch_that_was_cut_in_two_are_those_of_the_whole(config, tmp_path):
    before = whole(config(), tmp_path / "whole")
    after = stopped_at(config(), tmp_path / "stopped", 2)
    emitted = [e for e in after if isinstance(e, events.EpochEnded)]
    wanted = [e for e in before if isinstance(e, events.EpochEnded)]
    assert [(e.epoch, e.train_loss, e.train_accuracy, e.val_loss) for e in emitted] == [
        (e.epoch, e.train_loss, e.train_accuracy, e.val_loss) for e in wanted
    ]
    assert [e for e in after if isinstance(e, events.RunResumed)] == [events.RunResumed(1, 2)]


def test_memory_means_the_same_in_a_first_a_second_and_a_resumed_run(config, tmp_path):
    def emitted(stream):
        return {e.epoch: e.memory_bytes for e in stream if isinstance(e, events.EpochEnded)}

    first = emitted(whole(config(), tmp_path / "first"))
    second = emitted(whole(config(), tmp_path / "second"))
    resumed = emitted(stopped_at(config(), tmp_path / "resumed", 4))
    assert first == second
    assert resumed == {epoch: first[epoch] for epoch in (2, 3)}
    assert min(first.values()) > 0
    assert min(emitted(whole(config(strategy="full"), tmp_path / "full")).values()) > max(
        first.values()
    )


@pytest.mark.parametrize(
    ("phase", "precision"), [("validate", "fp32"), ("evaluate", "fp32"), ("evaluate", "bf16")]
)
@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.train)])
def test_stopped_or_killed_while_it_validates_or_evaluates(
    native_bf16, config, tmp_path, monkeypatch, marks, phase, precision, killed
):
    monkeypatch.setattr(evaluation, "EVENT_SECONDS", 0)
    config = config(precision=precision)
    whole(config, tmp_path / "whole")
    (tmp_path / "stopped").mkdir()
    stream = fit(config, tmp_path / "stopped")
    for event in stream:
        if isinstance(event, events.Progress) and event.phase == phase:
            break
    if killed:
        stream.close()  # nothing is written any more
    else:
        assert isinstance(stream.throw(StopRequested()), events.RunStopped)
    end = list(fit(config, tmp_path / "stopped", resume=True))[-1]
    assert isinstance(end, events.RunFinished)
    assert marks(tmp_path / "stopped") == marks(tmp_path / "whole")
    assert load_predictions(tmp_path / "stopped").equals(load_predictions(tmp_path / "whole"))
    assert predictions_precision(tmp_path / "stopped") == "fp32"


def test_checkpoints_within_an_epoch_and_a_process_that_dies_between_them(
    config, tmp_path, monkeypatch, marks
):
    whole(config(), tmp_path / "whole")
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)
    (tmp_path / "killed").mkdir()
    stream = fit(config(), tmp_path / "killed")
    for event in stream:
        if isinstance(event, events.StepEnded) and (event.epoch, event.step) == (2, 2):
            break
    stream.close()  # nothing is written any more
    found = list(fit(config(), tmp_path / "killed", resume=True))
    assert events.RunResumed(2, 2) in found
    assert marks(tmp_path / "killed") == marks(tmp_path / "whole")


def test_without_a_checkpoint_it_starts_again(config, tmp_path, marks):
    whole(config(), tmp_path / "whole")
    (tmp_path / "killed").mkdir()
    found = list(fit(config(), tmp_path / "killed", resume=True))
    assert events.RunResumed(1, 0) in found
    assert marks(tmp_path / "killed") == marks(tmp_path / "whole")


def test_other_classes_than_before_are_refused(config, image_folder, tmp_path):
    stopped_at(config(), tmp_path / "stopped", 1)
    image_folder(tmp_path / "images", {"yellow": 14})
    with pytest.raises(RunError, match="classes have changed"):
        list(fit(config(), tmp_path / "stopped", resume=True))


def test_other_images_than_before_are_refused(config, image_folder, tmp_path):
    stopped_at(config(), tmp_path / "stopped", 1)
    image_folder(tmp_path / "images", {"red": 15})
    with pytest.raises(RunError, match="The images, their labels or their split have changed"):
        list(fit(config(), tmp_path / "stopped", resume=True))


def test_a_process_that_dies_before_an_epoch_is_saved_tells_it_again(config, tmp_path, marks):
    before = whole(config(), tmp_path / "whole")
    (tmp_path / "killed").mkdir()
    stream = fit(config(), tmp_path / "killed")
    for event in stream:
        if isinstance(event, events.EpochEnded) and event.epoch == 2:
            break
    stream.close()
    found = list(fit(config(), tmp_path / "killed", resume=True))
    emitted = [event.epoch for event in found if isinstance(event, events.EpochEnded)]
    assert emitted == [2, 3]
    assert found[-1].best_epoch == before[-1].best_epoch
    assert marks(tmp_path / "killed") == marks(tmp_path / "whole")
