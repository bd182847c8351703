"""The final evaluation: whatever a run trains in, its best checkpoint is evaluated in fp32, as Predict computes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune_core.data.dataset import load_dataset
from finetune_core.data.splits import TEST, VAL
from finetune_core.models.catalogue import backbone_info
from finetune_core.training import evaluation, events
from finetune_core.training.loop import StopRequested, fit
from finetune_core.training.networks import best_network
from finetune_core.training.predictions import load_predictions, predictions_precision
from finetune_core.training.preview import network_input


@pytest.fixture
def config(native_bf16, colour_config):
    return lambda **settings: colour_config(batch_size=10, epochs=2, **settings)


def eager(config, folder, names):
    """Logits of the best checkpoint in fp32, image by image, with nothing cached."""
    network, _ = best_network(config, folder)
    images = torch.stack(
        [
            network_input(
                Path(config.data, name), backbone_info(config.backbone), config.image_size
            ).tensor
            for name in names
        ]
    )
    with torch.no_grad():
        return network.model(images).numpy()


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "bf16"},
        {"precision": "bf16", "strategy": "feature_extraction"},
        {"precision": "bf16", "cache": "off"},
        {"precision": "bf16", "augmentation": "flips", "views": 2, "ema": 0.9},
        {"precision": "fp32"},
        {"precision": "fp32", "strategy": "full", "ema": 0.9},
    ],
    ids=lambda settings: " ".join(f"{value}" for value in settings.values()),
)
def test_a_finished_run_holds_the_fp32_answers_of_its_best_checkpoint(config, tmp_path, settings):
    config = config(**settings)
    finished = list(fit(config, tmp_path))[-1]
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


def test_the_answers_of_a_run_that_is_stopped_say_that_they_are_in_bf16(config, tmp_path):
    stream = fit(config(precision="bf16"), tmp_path)
    for event in stream:
        if isinstance(event, events.EpochEnded):
            break
    stream.throw(StopRequested())
    assert predictions_precision(tmp_path) == "bf16"
    assert set(load_predictions(tmp_path)["split"]) == {VAL}


def test_fp32_answers_are_not_computed_twice(config, tmp_path, monkeypatch):
    seen, answers = [], evaluation.logits_in_parts

    def counted(model, inputs, *rest):
        seen.append(len(inputs))
        return answers(model, inputs, *rest)

    monkeypatch.setattr(evaluation, "logits_in_parts", counted)
    list(fit(config(precision="fp32"), tmp_path))
    assert sum(seen) == 2 * 6 + 6  # two epochs' validation images, then the test images


def test_runs_with_the_same_trunk_compute_it_in_fp32_once(config, tmp_path):
    decoded = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        phases = [
            e.phase
            for e in fit(config(precision="bf16", seed=seed), folder)
            if isinstance(e, events.Progress)
        ]
        decoded.append((phases.count("trunk") > 0, phases.count("decode") > 0))
    assert decoded == [(True, True), (False, False)]


def test_images_that_vanish_before_the_final_evaluation_are_counted_as_lost(
    config, tmp_path, monkeypatch
):
    monkeypatch.setenv("THAW_CACHE_MEMORY_GB", "0")
    monkeypatch.setenv("THAW_CACHE_DISK_GB", "0")
    config = config(precision="bf16", skip_limit=0.2)
    stream, found = fit(config, tmp_path), []
    for event in stream:
        found.append(event)
        if (
            isinstance(event, events.CheckpointSaved)
            and event.name == "last"
            and event.epoch == config.epochs
        ):
            break
    Path(config.data, load_predictions(tmp_path)["id"].iloc[0]).unlink()
    found += list(stream)
    assert [event.count for event in found if isinstance(event, events.ImagesLost)] == [1]
    assert isinstance(found[-1], events.RunFinished)
    assert len(load_predictions(tmp_path)) == 11


def test_the_only_image_left_of_a_split_is_evaluated(config, tmp_path, monkeypatch):
    monkeypatch.setenv("THAW_CACHE_MEMORY_GB", "0")
    monkeypatch.setenv("THAW_CACHE_DISK_GB", "0")
    config = config(precision="fp32", cache="off", skip_limit=0.5)
    stream, found = fit(config, tmp_path), []
    for event in stream:
        found.append(event)
        if isinstance(event, events.EpochEnded):
            break
    dataset = load_dataset(config.data).table
    validated = dataset.loc[dataset["split"] == VAL, "id"].tolist()
    for name in validated[1:]:
        Path(config.data, name).unlink()
    found += list(stream)
    lost = [event.count for event in found if isinstance(event, events.ImagesLost)]
    assert lost[-1] == len(validated) - 1
    second = [event for event in found if isinstance(event, events.EpochEnded)][1]
    assert second.val_accuracy in (0, 1)
