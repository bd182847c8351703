"""Tests that a best checkpoint is evaluated in fp32, as Predict computes, in any precision."""

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune_core.data.dataset import load_dataset
from finetune_core.data.splits import TEST, VAL
from finetune_core.models.catalogue import backbone_info
from finetune_core.training import evaluation, events
from finetune_core.training.checkpoints.networks import load_best_network
from finetune_core.training.data_pipeline.preview import network_input
from finetune_core.training.loop import StopRequested
from finetune_core.training.predictions import load_predictions, predictions_precision
from tests.factories import HUES, image_folder, tiny_config
from tests.training.fits import ends_epoch, fit_all, fit_until, only

pytestmark = pytest.mark.usefixtures("native_bf16")


@pytest.fixture
def uncached(monkeypatch, tmp_path):
    """Make configs of runs that read every image, of a folder of their own, in every epoch."""
    monkeypatch.setenv("THAW_CACHE_MEMORY_GB", "0")
    monkeypatch.setenv("THAW_CACHE_DISK_GB", "0")
    images = image_folder(tmp_path / "images", dict.fromkeys(HUES, 14))
    return lambda **settings: tiny_config(images, **settings)


def eager(config, folder, names):
    """Return logits of the best checkpoint in fp32, image by image, with nothing cached."""
    network, _ = load_best_network(config, folder)
    info = backbone_info(config.backbone)
    inputs = [network_input(Path(config.data, name), info, config.image_size) for name in names]
    with torch.no_grad():
        return network.model(torch.stack([one.tensor for one in inputs])).numpy()


@pytest.mark.train
@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "bf16"},
        {"precision": "fp32", "strategy": "full", "ema": 0.9},
        *(
            pytest.param(one, marks=pytest.mark.train)
            for one in (
                {"precision": "bf16", "strategy": "feature_extraction"},
                {"precision": "bf16", "augmentation": "flips", "views": 2, "ema": 0.9},
                {"precision": "bf16", "cache": "off"},
                {"precision": "fp32"},
            )
        ),
    ],
    ids=lambda settings: " ".join(f"{value}" for value in settings.values()),
)
def test_a_finished_run_holds_the_fp32_answers_of_its_best_checkpoint(
    tmp_path, monkeypatch, settings
):
    counts, real = [], evaluation.compute_logits_in_parts

    def count(model, inputs, *rest):
        counts.append(len(inputs))
        return real(model, inputs, *rest)

    monkeypatch.setattr(evaluation, "compute_logits_in_parts", count)
    config = tiny_config(**settings)
    finished = fit_all(config, tmp_path)[-1]
    table = load_predictions(tmp_path)
    assert predictions_precision(tmp_path) == finished.evaluation_precision == "fp32"
    assert table["split"].value_counts().to_dict() == {VAL: 6, TEST: 6}
    logits = np.stack(table["logits"])
    expected = eager(config, tmp_path, table["id"])
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    right = table["label"] == logits.argmax(1)
    assert finished.val_accuracy == right[table["split"] == VAL].mean()
    assert finished.test_accuracy == right[table["split"] == TEST].mean()
    losses = torch.nn.functional.cross_entropy(
        torch.tensor(expected), torch.tensor(table["label"]), reduction="none"
    ).numpy()
    assert finished.val_loss == pytest.approx(losses[table["split"] == VAL].mean(), abs=1e-4)
    # two epochs' validation images, then the test images; those of validation again after bf16
    assert sum(counts) == 2 * 6 + 6 + (6 if config.precision == "bf16" else 0)


def test_the_answers_of_a_run_that_is_stopped_say_that_they_are_in_bf16(tmp_path):
    _, training = fit_until(tiny_config(precision="bf16"), tmp_path, ends_epoch())
    training.throw(StopRequested())
    assert predictions_precision(tmp_path) == "bf16"
    assert set(load_predictions(tmp_path)["split"]) == {VAL}


@pytest.mark.train
def test_runs_with_the_same_trunk_compute_it_in_fp32_once(tmp_path):
    found = []
    for seed in (0, 1):
        config = tiny_config(precision="bf16", seed=seed, epochs=1)
        seen = only(events.Progress, fit_all(config, tmp_path / str(seed)))
        found.append({event.phase for event in seen} & {"trunk", "decode"})
    assert found == [{"trunk", "decode"}, set()]


@pytest.mark.train
def test_images_that_vanish_before_the_final_evaluation_are_counted_as_lost(uncached, tmp_path):
    config = uncached(precision="bf16", skip_limit=0.2, epochs=1)

    def saves_last(event):
        return isinstance(event, events.CheckpointSaved) and event.name == "last"

    found, training = fit_until(config, tmp_path / "run", saves_last)
    Path(config.data, load_predictions(tmp_path / "run")["id"].iloc[0]).unlink()
    found += list(training)
    assert [event.count for event in only(events.ImagesLost, found)] == [1]
    assert isinstance(found[-1], events.RunFinished)
    assert len(load_predictions(tmp_path / "run")) == 11


@pytest.mark.train
def test_the_only_image_left_of_a_split_is_evaluated(uncached, tmp_path):
    config = uncached(cache="off", skip_limit=0.5)
    found, training = fit_until(config, tmp_path / "run", ends_epoch())
    dataset = load_dataset(config.data).table
    validated = dataset.loc[dataset["split"] == VAL, "id"].tolist()
    for name in validated[1:]:
        Path(config.data, name).unlink()
    found += list(training)
    assert only(events.ImagesLost, found)[-1].count == len(validated) - 1
    assert only(events.EpochEnded, found)[1].val_accuracy in (0, 1)
