import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from finetune_core.config import make_config
from finetune_core.errors import ImageError
from finetune_core.models.catalogue import backbone_info
from finetune_core.training.prepare import prepare
from finetune_core.training.preview import augmented_versions, network_input
from finetune_core.work import finish

LITE = "efficientnet_lite0"


@pytest.fixture
def folder(image_folder, tmp_path):
    return image_folder(tmp_path / "images", {"red": 6, "blue": 6}, size=(60, 44))


def job_of(folder, **settings):
    usual = {
        "data": str(folder),
        "weights": "none",
        "image_size": 32,
        "batch_size": 4,
        "precision": "fp32",
        "device": "cpu",
    }
    return finish(prepare(make_config(usual | settings)))


def fed(job, epoch):
    """Id -> what the network gets in that epoch, turned back into an image."""
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (job.network.info.mean, job.network.info.std)
    )
    ids = job.dataset.table["id"]
    images = {}
    for rows, inputs in job.training_inputs(job.training_batches(epoch), epoch):
        for row, tensor in zip(rows, inputs, strict=True):
            images[ids[row]] = (
                ((tensor * std + mean) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
            )
    return images


@pytest.mark.parametrize("kind", ["flips", "random_resized_crop"])
def test_versions_are_what_a_run_trains_on_in_turn(folder, kind):
    job = job_of(folder, strategy="full", augmentation=kind, views=3, seed=7)
    for epoch in (1, 2, 3, 4):
        images = fed(job, epoch)
        assert len(images) == 8
        for sample, image in images.items():
            versions = augmented_versions(
                folder / sample, sample, kind, 7, 3, backbone_info(LITE), 32
            )
            assert np.array_equal(image, versions[(epoch - 1) % 3]), (sample, epoch)


@pytest.mark.parametrize("kind", ["flips", "random_resized_crop"])
def test_versions_are_what_the_frozen_stages_see(folder, kind):
    """With a cached trunk, its output for each version is what the tail gets."""
    job = job_of(folder, strategy="feature_extraction", augmentation=kind, views=2, seed=7)
    info, ids = backbone_info(LITE), job.dataset.table["id"]
    mean, std = (torch.tensor(values)[:, None, None] for values in (info.mean, info.std))
    for epoch in (1, 2, 3):
        for rows, inputs in job.training_inputs(job.training_batches(epoch), epoch):
            for row, ours in zip(rows, inputs, strict=True):
                image = augmented_versions(
                    folder / ids[row], ids[row], kind, 7, 2, backbone_info(LITE), 32
                )[(epoch - 1) % 2]
                tensor = (torch.from_numpy(image.copy()).permute(2, 0, 1) / 255 - mean) / std
                with torch.no_grad():
                    whole = job.network.model(tensor[None])
                    torch.testing.assert_close(
                        job.forward.eval()(ours[None]), whole, rtol=1e-3, atol=1e-4
                    )


def test_a_run_with_fresh_versions_has_the_epochs_number(folder):
    job = job_of(folder, strategy="full", augmentation="random_resized_crop", seed=7)
    for epoch in (1, 2):
        for sample, image in fed(job, epoch).items():
            versions = augmented_versions(
                folder / sample, sample, "random_resized_crop", 7, epoch, backbone_info(LITE), 32
            )
            assert np.array_equal(image, versions[epoch - 1])


def test_versions_differ_by_number_seed_and_sample(folder):
    image = folder / "red" / "000.png"
    first = augmented_versions(
        image, "red/000.png", "random_resized_crop", 0, 3, backbone_info(LITE), 32
    )
    assert all(version.shape == (32, 32, 3) and version.dtype == np.uint8 for version in first)
    others = [
        augmented_versions(
            image, "red/000.png", "random_resized_crop", 1, 1, backbone_info(LITE), 32
        ),
        augmented_versions(
            image, "red/001.png", "random_resized_crop", 0, 1, backbone_info(LITE), 32
        ),
    ]
    assert len({version.tobytes() for version in (*first, *others[0], *others[1])}) == 5
    again = augmented_versions(
        image, "red/000.png", "random_resized_crop", 0, 3, backbone_info(LITE), 32
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_without_augmentation_each_version_is_the_plain_image(folder):
    image = folder / "red" / "000.png"
    plain = network_input(image, backbone_info(LITE), 32).image
    assert all(
        np.array_equal(version, plain)
        for version in augmented_versions(
            image, "red/000.png", "none", 0, 2, backbone_info(LITE), 32
        )
    )


def test_the_network_input_is_what_a_run_validates_on(folder):
    job = job_of(folder, strategy="full")
    ids = job.dataset.table["id"]
    for rows, inputs in job.evaluation_inputs("val"):
        for row, tensor in zip(rows, inputs, strict=True):
            ours = network_input(folder / ids[row], backbone_info(LITE), 32)
            assert torch.equal(ours.tensor, tensor)
            assert (ours.low, ours.high) == (float(tensor.min()), float(tensor.max()))


def test_what_is_shown_are_the_pixels_in_the_middle(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 37, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")  # 37: what 32 pixels are cut out of
    assert np.array_equal(
        network_input(tmp_path / "a.png", backbone_info(LITE), 32).image, pixels[2:34, 2:34]
    )
    assert np.array_equal(
        network_input((tmp_path / "a.png").read_bytes(), backbone_info(LITE), 32).image,
        pixels[2:34, 2:34],
    )


def test_problems_are_in_words(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ImageError, match=r"text\.png"):
        network_input(tmp_path / "text.png", backbone_info(LITE), 32)
    with pytest.raises(ImageError, match=r"text\.png"):
        augmented_versions(
            tmp_path / "text.png", "text.png", "flips", 0, 1, backbone_info(LITE), 32
        )


def test_an_image_is_resized_as_the_network_was_pretrained(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    # all of the square, bicubic
    fed = network_input(tmp_path / "noise.png", backbone_info("timm/vit_small_patch16_dinov3"), 64)
    expected = np.asarray(ImageOps.fit(Image.fromarray(noise), (64, 64), Image.Resampling.BICUBIC))
    assert np.abs(fed.image.astype(int) - expected).max() <= 1  # through the normalisation and back
    assert (
        np.abs(
            network_input(tmp_path / "noise.png", backbone_info(LITE), 64).image.astype(int)
            - expected
        ).max()
        > 20
    )
