"""Tests that pages show of an image what the network gets."""

import io
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from finetune_core.errors import ImageError
from finetune_core.models.catalogue import backbone_info, backbone_info_for
from finetune_core.training.data_pipeline.preview import (
    draw_crop,
    make_augmented_versions,
    network_input,
)
from finetune_core.training.prepare import prepare
from finetune_core.work import finish
from tests.factories import image_folder, tiny_config

LITE = "efficientnet_lite0"


@pytest.fixture
def folder(tmp_path):
    return image_folder(tmp_path / "images", {"red": 6, "blue": 6}, size=(60, 44))


def job_of(folder, **settings):
    return finish(prepare(lite(folder, weights="none", batch_size=4, seed=7, **settings)))


lite = partial(tiny_config, backbone=LITE)
INFO = backbone_info(LITE)


def versions_of(image, sample, kind, seed, count):
    return make_augmented_versions(image, sample, kind, seed, count, INFO, 32)


def fed(job, epoch):
    """Return what the network gets in that epoch, turned back into images, by id."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (INFO.mean, INFO.std))
    ids, images = job.dataset.table["id"], {}
    for rows, inputs in job.training_inputs(job.training_batches(epoch), epoch):
        pixels = ((inputs * std + mean) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        images |= dict(zip(ids[rows], pixels, strict=True))
    return images


@pytest.mark.train
@pytest.mark.parametrize(
    ("kind", "views"), [("flips", 3), ("random_resized_crop", 3), ("random_resized_crop", 0)]
)
def test_versions_are_what_a_run_trains_on_in_turn_or_afresh(folder, kind, views):
    job = job_of(folder, strategy="full", augmentation=kind, views=views)
    for epoch in (1, 2, 3, 4):
        images = fed(job, epoch)
        assert len(images) == 8
        for sample, image in images.items():
            versions = versions_of(folder / sample, sample, kind, 7, views or epoch)
            assert np.array_equal(image, versions[(epoch - 1) % len(versions)]), (sample, epoch)


@pytest.mark.train
@pytest.mark.parametrize("kind", ["flips", "random_resized_crop"])
def test_versions_are_what_the_frozen_stages_see(folder, kind):
    """With a cached trunk, its output for each version is what the tail gets."""
    job = job_of(folder, strategy="feature_extraction", augmentation=kind, views=2)
    ids = job.dataset.table["id"]
    mean, std = (torch.tensor(values)[:, None, None] for values in (INFO.mean, INFO.std))
    for epoch in (1, 2, 3):
        for rows, inputs in job.training_inputs(job.training_batches(epoch), epoch):
            versions = [
                versions_of(folder / sample, sample, kind, 7, 2)[(epoch - 1) % 2]
                for sample in ids[rows]
            ]
            images = torch.from_numpy(np.stack(versions)).permute(0, 3, 1, 2)
            with torch.no_grad():
                whole = job.network.model((images / 255 - mean) / std)
                found = job.forward.eval()(inputs)
            torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-4)


def test_versions_differ_by_number_seed_and_sample(folder):
    image, kind = folder / "red" / "000.png", "random_resized_crop"
    first, again = (versions_of(image, "red/000.png", kind, 0, 3) for _ in range(2))
    assert all(version.shape == (32, 32, 3) and version.dtype == np.uint8 for version in first)
    others = [
        versions_of(image, "red/000.png", kind, 1, 1),
        versions_of(image, "red/001.png", kind, 0, 1),
    ]
    assert len({version.tobytes() for version in (*first, *others[0], *others[1])}) == 5
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_without_augmentation_each_version_is_the_plain_image(folder):
    image = folder / "red" / "000.png"
    plain = network_input(image, INFO, 32).image
    versions = versions_of(image, "red/000.png", "none", 0, 2)
    assert all(np.array_equal(version, plain) for version in versions)


def test_the_frame_over_a_picture_is_the_crop_that_the_network_sees():
    red = np.zeros((60, 120, 3), np.uint8)
    red[..., 0] = 255
    file = io.BytesIO()
    Image.fromarray(red).save(file, "PNG")
    drawn = np.asarray(draw_crop(file.getvalue(), INFO, 32, 240))
    assert drawn.shape == (120, 240, 3)
    rows, columns = np.nonzero((drawn == 255).all(axis=2))
    side = round(120 * 32 / INFO.compute_resize_size(32))
    assert abs(rows.max() - rows.min() + 1 - side) <= 1
    assert abs(columns.max() - columns.min() + 1 - side) <= 1
    assert abs(columns.max() + columns.min() - 239) <= 1, "in the middle"


def test_the_frame_over_a_padded_picture_is_all_of_it():
    file = io.BytesIO()
    Image.new("RGB", (120, 60), "red").save(file, "PNG")
    info = backbone_info_for(tiny_config(fit="pad"))
    drawn = np.asarray(draw_crop(file.getvalue(), info, 32, 240))
    assert drawn.shape == (120, 240, 3)
    for edge in (drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]):
        assert (edge == 255).all()


def test_the_network_input_is_what_a_run_validates_on(folder):
    job = job_of(folder, strategy="full")
    ids = job.dataset.table["id"]
    for rows, inputs in job.evaluation_inputs("val"):
        for row, tensor in zip(rows, inputs, strict=True):
            ours = network_input(folder / ids[row], INFO, 32)
            assert torch.equal(ours.tensor, tensor)
            assert (ours.low, ours.high) == (float(tensor.min()), float(tensor.max()))


def test_what_is_shown_are_the_pixels_in_the_middle(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 37, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")  # 37: what 32 pixels are cut out of
    for image in (tmp_path / "a.png", (tmp_path / "a.png").read_bytes()):
        assert np.array_equal(network_input(image, INFO, 32).image, pixels[2:34, 2:34])


def test_problems_are_in_words(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ImageError, match=r"text\.png"):
        network_input(tmp_path / "text.png", INFO, 32)
    with pytest.raises(ImageError, match=r"text\.png"):
        versions_of(tmp_path / "text.png", "text.png", "flips", 0, 1)


def test_an_image_is_resized_as_the_network_was_pretrained(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    # all of the square, bicubic
    fed = network_input(tmp_path / "noise.png", backbone_info("timm/vit_small_patch16_dinov3"), 64)
    expected = np.asarray(ImageOps.fit(Image.fromarray(noise), (64, 64), Image.Resampling.BICUBIC))
    assert np.abs(fed.image.astype(int) - expected).max() <= 1  # through the normalisation and back
    other = network_input(tmp_path / "noise.png", INFO, 64)
    assert np.abs(other.image.astype(int) - expected).max() > 20
