import numpy as np
import pytest
import torch

from finetune_core.data.decode import Resize, read_square
from finetune_core.data.image_stats import measure_image
from finetune_core.data.pixels import compute_resize_size, decode_pixels
from finetune_core.data.rowcache import CACHE
from finetune_core.errors import ImageError
from finetune_core.work import Step
from tests.drain import drain
from tests.factories import image_folder

LIMITS = {"memory": {}, "disk": {"MEMORY": "0"}, "nowhere": {"MEMORY": "0", "DISK": "0"}}


@pytest.fixture(autouse=True)
def empty_cache():
    CACHE.clear()
    yield
    CACHE.clear()


@pytest.fixture(params=LIMITS)
def place(request, monkeypatch):
    """Limit the cache to memory, disk or nothing."""
    for name, limit in LIMITS[request.param].items():
        monkeypatch.setenv(f"THAW_CACHE_{name}_GB", limit)
    return request.param


@pytest.fixture
def paths(tmp_path):
    image_folder(tmp_path, {"red": 3, "blue": 2})
    return sorted(tmp_path.glob("*/*.png"))


def decode(paths, side=16, wanted=None, fit="crop"):
    """Return (progress, pixels) of ``decode_pixels``, which only this function calls."""
    wanted = np.arange(len(paths)) if wanted is None else np.array(wanted)
    keys = np.array([measure_image(path).content for path in paths], dtype=np.uint64)
    return drain(decode_pixels(paths, keys, wanted, Resize(side, fit=fit)))


def test_batch_holds_the_images_asked_for(paths, place):
    steps, pixels = decode(paths)
    assert steps[-1] == Step(5, 5)
    assert steps == sorted(set(steps))
    assert pixels.failed == {}
    batch = pixels.batch(np.array([3, 0, 4]))
    assert batch.shape == (3, 3, 16, 16)
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous(memory_format=torch.channels_last)
    for image, index in zip(batch, (3, 0, 4), strict=True):
        np.testing.assert_array_equal(
            image.permute(1, 2, 0).numpy(), read_square(paths[index], Resize(16))
        )
    batch.zero_()  # changes nothing that is kept
    assert pixels.batch(np.array([3, 0, 4])).any()


def test_no_images_are_no_error(paths, place):
    _, pixels = decode(paths)
    nothing = np.empty(0, int)
    assert pixels.batch(nothing).shape == (0, 3, 16, 16)
    left, squares = pixels.load_readable(nothing)
    assert (len(left), squares.shape) == (0, (0, 3, 16, 16))
    steps, pixels = decode([])
    assert (steps, pixels.failed) == ([], {})


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_there(paths, place):
    paths[2].write_text("no picture")
    _, pixels = decode(paths)
    assert list(pixels.failed) == [2]
    assert paths[2].name in pixels.failed[2]
    got = pixels.batch(np.array([3]))[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(got, read_square(paths[3], Resize(16)))


def test_a_file_that_is_gone_later_is_an_image_error_where_nothing_is_kept(paths, monkeypatch):
    for name, limit in LIMITS["nowhere"].items():
        monkeypatch.setenv(f"THAW_CACHE_{name}_GB", limit)
    _, pixels = decode(paths)
    paths[1].unlink()
    with pytest.raises(ImageError, match="not there"):
        pixels.batch(np.array([0, 1]))


def test_images_decoded_before_are_not_decoded_again_and_changed_ones_are(paths):
    decode(paths)
    assert decode(paths)[0] == []
    paths[0].write_bytes(paths[4].read_bytes() + b"\0")
    steps, pixels = decode(paths)
    assert steps == [Step(1, 1)]
    assert torch.equal(pixels.batch(np.array([0])), pixels.batch(np.array([4])))
    _, pixels = decode(paths, 24)  # another side is another image
    assert pixels.batch(np.array([0])).shape == (1, 3, 24, 24)
    steps, _ = decode(paths, fit="pad")  # and so is a padded one
    assert steps[-1] == Step(5, 5)


def test_the_resize_size_leaves_room_for_the_centre_crop():
    assert compute_resize_size(224) == 256
    assert all(compute_resize_size(size) > size for size in range(32, 1025))


def test_images_that_new_ones_drive_out_of_a_tight_disk_are_decoded_again(tmp_path, monkeypatch):
    monkeypatch.setenv("THAW_CACHE_MEMORY_GB", "0")
    image_folder(tmp_path / "images", {"red": 3, "blue": 3})
    paths = sorted((tmp_path / "images").glob("*/*.png"))
    decode(paths, wanted=[0, 1, 2])
    monkeypatch.setenv("THAW_CACHE_DISK_GB", str(4 * 16 * 16 * 3 / 1e9))
    _, pixels = decode(paths)
    for index in range(6):
        batch = pixels.batch(np.array([index]))
        np.testing.assert_array_equal(
            batch[0].permute(1, 2, 0).numpy(), read_square(paths[index], Resize(16))
        )
