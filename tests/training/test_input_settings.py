"""Tests that mean, deviation, crop and interpolation are the network's, or those that were set."""

from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finetune_core.commands.train import build_config
from finetune_core.config import make_config
from finetune_core.data.dataset import load_dataset
from finetune_core.data.decode import PADDING, Resize, read_square
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.evaluation.run_images import load_run_images
from finetune_core.models.catalogue import backbone_info, backbone_info_for
from finetune_core.training.checkpoints.networks import build_initial_network
from finetune_core.training.data_pipeline.preview import network_input
from finetune_core.training.data_pipeline.trunk import _VERSIONS, TrunkTables
from finetune_core.training.devices.device import choose_device
from finetune_core.training.devices.speed_book import Speed
from finetune_core.training.forecast.forecast import compute_forecast
from finetune_core.training.predictions import load_predictions
from finetune_core.training.prepare import prepare
from finetune_core.work import finish
from tests.factories import tiny_config, trained_run

LITE = "efficientnet_lite0"
lite = partial(tiny_config, backbone=LITE)
OTHER = {
    "mean": (0.1, 0.2, 0.3),
    "std": (0.2, 0.3, 0.4),
    "crop_pct": 0.5,
    "interpolation": "bicubic",
}
LETTERS = {"mean": "mean", "std": "std", "crop_pct": "crop", "interpolation": "interpolation"}


def test_they_are_the_networks_own_until_they_are_set():
    own = backbone_info(LITE)
    assert backbone_info_for(make_config({"data": "x"})) == own
    found = backbone_info_for(make_config({"data": "x"} | OTHER))
    assert {name: getattr(found, letters) for name, letters in LETTERS.items()} == OTHER
    assert (found.name, found.file, found.compute_resize_size(32)) == (own.name, own.file, 64)


def by_hand(file):
    square = read_square(file, Resize(64, "bicubic"))[16:48, 16:48].astype(np.float32) / 255
    return ((square - np.float32(OTHER["mean"])) / np.float32(OTHER["std"])).transpose(2, 0, 1)


@pytest.mark.train
@pytest.mark.parametrize("cache", ["auto", "off"])
def test_a_run_trains_evaluates_and_predicts_on_images_prepared_so(cache):
    run = trained_run(strategy="feature_extraction", epochs=1, cache=cache, **OTHER)
    predictor = load_predictor(run)
    images = finish(load_run_images(run, {"val": 5}))
    ids = images.dataset.table["id"].iloc[images.rows["val"]]
    files = [Path(run.config.data, name) for name in ids]
    fed = torch.from_numpy(np.stack([by_hand(file) for file in files]))
    shown = torch.stack([network_input(file, predictor.network.info, 32).tensor for file in files])
    torch.testing.assert_close(shown, fed, atol=1e-5, rtol=1e-5)
    assert images.pixels.resize == Resize(64, "bicubic")
    logits = predictor.network.model(fed).detach()
    np.testing.assert_allclose(predictor.predict_proba(files), logits.softmax(1), atol=1e-5)
    stored = load_predictions(run.run_dir).set_index("id")["logits"]
    np.testing.assert_allclose(np.stack(stored[ids].tolist()), logits, atol=1e-4)


@pytest.fixture
def wide(tmp_path):
    """Return a folder of images twice as wide as high, with the class at the left edge only."""
    for name, color in {"red": (200, 0, 0), "green": (0, 200, 0)}.items():
        (tmp_path / name).mkdir()
        for number in range(12):
            pixels = np.full((20, 40, 3), 10 * number, np.uint8)
            pixels[:, :8] = color
            Image.fromarray(pixels).save(tmp_path / name / f"{number:03}.png")
    return tmp_path


def test_a_padded_image_is_whole_and_centred(wide):
    square = read_square(wide / "red" / "003.png", Resize(20, fit="pad"))
    assert (square[:5] == PADDING).all()
    assert (square[15:] == PADDING).all()
    assert (square[5:15, 0] == (200, 0, 0)).all()
    assert (square[5:15, -1] == 30).all()


def test_padded_images_are_not_cropped_unless_that_is_set():
    assert backbone_info_for(lite(fit="pad")).get_resize(48) == Resize(48, fit="pad")
    assert backbone_info_for(lite(fit="pad", crop_pct=0.5)).compute_resize_size(48) == 96


@pytest.mark.train
@pytest.mark.parametrize("cache", ["auto", "off"])
def test_a_run_on_padded_images_sees_what_a_crop_hides(wide, cache):
    settings = {"data": str(wide), "strategy": "linear_probe", "cache": cache}
    cropped = backbone_info_for(lite())
    seen = network_input(wide / "red" / "003.png", cropped, 32).image
    assert np.ptp(seen) == 0, "the crop shows none of the class"
    run = trained_run(**settings, fit="pad")
    found = load_predictions(run.run_dir)
    assert (np.stack(found["logits"].tolist()).argmax(1) == found["label"]).all()
    predictor = load_predictor(run)
    file = wide / "green" / "001.png"
    shown = network_input(file, predictor.network.info, 32)
    np.testing.assert_array_equal(shown.image, read_square(file, Resize(32, fit="pad")))
    logits = predictor.network.model(shown.tensor[None]).detach()
    np.testing.assert_allclose(predictor.predict_proba([file]), logits.softmax(1), atol=1e-5)


@pytest.mark.train
def test_only_what_is_changed_changes_the_cache():
    device = choose_device("cpu", "fp32")

    def name(**settings):
        network = build_initial_network(lite(**settings), ("a", "b")).network
        return TrunkTables(network, device, 32).get_name(3)

    own = backbone_info(LITE)
    assert name() == name(
        mean=own.mean, std=own.std, crop_pct=own.crop, interpolation=own.interpolation
    )
    others = [name(**{field: value}) for field, value in OTHER.items()]
    padded = [name(fit="pad"), name(fit="pad", crop_pct=own.crop)]
    assert len({name(), *others, *padded}) == 7


def test_the_name_of_an_unchanged_trunk_is_that_of_earlier_versions():
    network = build_initial_network(lite(), ("a", "b")).network
    known = (network.weights_hash, LITE, (0.5,) * 3, (0.5,) * 3, 32, "cpu", "fp32", "", _VERSIONS)
    digest = sha256(repr(known).encode()).hexdigest()[:16]
    assert TrunkTables(network, choose_device("cpu", "fp32"), 32).get_name(3) == f"trunk-{digest}-3"


def test_a_run_that_starts_from_another_takes_them_unless_they_are_set():
    parent = trained_run(strategy="feature_extraction", epochs=1, **OTHER)
    start, data = {"from_run": str(parent.run_dir)}, parent.config.data
    follows = build_config(start, data, None, as_is=True)
    assert {name: getattr(follows, name) for name in OTHER} == OTHER
    given = start | {"mean": "0.5,0.5,0.5", "crop_pct": "100 %"}
    mixed = build_config(given, data, None, as_is=True)
    assert (mixed.mean, mixed.std, mixed.crop_pct) == ((0.5,) * 3, OTHER["std"], 1.0)


def test_the_forecast_knows_how_large_decoded_images_are():
    speed = Speed(0.001, 0.001, 0.001, 0, 1000, 0.0)
    whole, half = (
        compute_forecast(config, load_dataset(config.data), speed, 0.001).memory_bytes
        for config in (
            tiny_config(strategy="full", crop_pct=1.0),
            tiny_config(strategy="full", crop_pct=0.5),
        )
    )
    assert half - whole == 42 * 3 * (64**2 - 32**2)


def test_training_images_are_prepared_so():
    preparing = prepare(tiny_config(strategy="full", augmentation="none", **OTHER))
    job = finish(preparing)
    rows, inputs = next(job.training_inputs(job.training_batches(1), 1))
    file = Path(job.config.data, job.dataset.table["id"].iloc[rows[0]])
    torch.testing.assert_close(
        inputs[0].contiguous(), torch.from_numpy(by_hand(file)), atol=1e-5, rtol=1e-5
    )
