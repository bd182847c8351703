import io
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

from finetune_core.data.image_stats import THUMB_SIDE, measure_image

quick = settings(deadline=None, derandomize=True, database=None, max_examples=60)


def draw_photo(size=(160, 120), seed=0):
    """Draw slow changes of light, and shapes with edges."""
    random = np.random.default_rng(seed)
    image = Image.fromarray(random.integers(0, 256, (3, 4, 3), np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    draw = ImageDraw.Draw(image)
    for x, y, *colour in random.integers(0, 256, (40, 5)):
        left, top = x * size[0] // 256, y * size[1] // 256
        draw.rectangle(
            (left, top, left + size[0] // 9, top + size[1] // 9), tuple(map(int, colour))
        )
    return image


def encode_image(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def look(tmp_path):
    def look_at_image(image, kind="PNG", **options):
        content = image if isinstance(image, bytes) else encode_image(image, kind, **options)
        file = tmp_path / f"picture.{kind.lower()}"
        file.write_bytes(content)
        return measure_image(file)

    return look_at_image


def test_sound_image_has_no_problem(look):
    seen = look(draw_photo((160, 120)), "JPEG")
    assert (seen.problem, seen.reason) == ("", "")
    assert (seen.width, seen.height, seen.mode, seen.format) == (160, 120, "RGB", "JPEG")
    assert seen.frames == 1


# What lies at the path -> the problem, and its reason.
PROBLEMS = {
    "empty": (lambda file: file.touch(), "empty_file", "a.png is empty (0 bytes)"),
    "missing": (lambda file: None, "missing_file", "a.png is not there"),
    "text": (lambda file: file.write_text("not a picture"), "unreadable", "a.png"),
    "folder": (lambda file: file.mkdir(), "unreadable", "a.png"),
    "pipe": (os.mkfifo, "unreadable", "a.png"),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders here")
@pytest.mark.parametrize(("put", "problem", "reason"), PROBLEMS.values(), ids=PROBLEMS)
def test_what_is_no_image_has_a_problem_and_a_thumbnail(tmp_path, put, problem, reason):
    put(tmp_path / "a.png")
    seen = measure_image(tmp_path / "a.png")
    assert seen.problem == problem
    assert reason in seen.reason
    assert len(seen.thumb) == 432
    assert measure_image(tmp_path / ("a" * 300 + ".png")).problem == "unreadable"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_an_image_that_is_cut_short_is_damaged_and_its_header_is_known(look, kind):
    content = encode_image(draw_photo(), kind)
    seen = look(content[: len(content) // 2], kind)
    assert seen.problem == "damaged"
    assert "picture" in seen.reason
    assert (seen.width, seen.height, seen.format) == (160, 120, kind)


def test_an_animation_has_more_than_one_frame(look):
    frames = [draw_photo((30, 20), seed) for seed in range(3)]
    assert look(frames[0], "GIF", save_all=True, append_images=frames[1:]).frames > 1
    assert look(frames[0], "GIF").frames == 1


def test_size_and_thumbnail_are_those_of_the_upright_image(look):
    exif = Image.Exif()
    for orientation, size in ((1, (30, 20)), (3, (30, 20)), (6, (20, 30)), (8, (20, 30))):
        exif[0x0112] = orientation
        seen = look(Image.new("RGB", (30, 20)), "JPEG", exif=exif)
        assert (seen.width, seen.height) == size
    exif[0x0112] = 6
    turned = look(draw_photo().transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    assert turned.thumb == look(draw_photo()).thumb


def test_equal_bytes_have_equal_content_and_others_do_not(look):
    one, again = look(draw_photo()), look(draw_photo())
    assert one == again
    others = {
        one.content,
        look(draw_photo(seed=1)).content,
        look(draw_photo(), "JPEG").content,
        look(b"x").content,
    }
    assert len(others) == 4
    assert all(0 < content < 2**64 for content in others)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_mode_is_named_and_has_a_thumbnail(look, mode):
    wide = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
    image = (
        Image.fromarray(np.asarray(draw_photo().convert("L")).astype(wide[mode]))
        if mode in wide
        else draw_photo().convert(mode)
    )
    seen = look(image, {"CMYK": "JPEG", "I": "TIFF", "F": "TIFF"}.get(mode, "PNG"))
    assert (seen.problem, seen.mode) == ("", mode)
    assert len(seen.thumb) == THUMB_SIDE * THUMB_SIDE * 3 == 432


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 3), (12, 12)])
def test_any_shape_has_a_thumbnail_and_finite_numbers(look, size):
    seen = look(draw_photo(size))
    assert len(seen.thumb) == 432
    assert np.isfinite([seen.brightness, seen.low, seen.high, seen.contrast, seen.sharpness]).all()


def test_a_dark_and_a_bright_version(look):
    dark, usual, bright = (
        look(draw_photo().point(lambda value, by=by: min(255, value * by + 40 * (by > 1))))
        for by in (0.1, 1, 1.6)
    )
    assert dark.brightness < usual.brightness < bright.brightness
    assert dark.low < usual.low < bright.low
    assert dark.high < 40 < usual.high < bright.high
    assert dark.contrast < usual.contrast


def test_black_white_and_one_colour(look):
    black, white, one = (
        look(Image.new("RGB", (50, 40), colour)) for colour in ("black", "white", (90, 90, 90))
    )
    assert (black.brightness, black.low, black.high) == (0, 0, 0)
    assert (white.brightness, white.low, white.high) == (255, 255, 255)
    assert one.brightness == one.low == one.high == pytest.approx(90, abs=1)
    assert black.contrast == white.contrast == one.contrast == 0
    assert black.sharpness == white.sharpness == one.sharpness == 0


def test_low_and_high_leave_five_in_a_hundred_out(look):
    pixels = np.full((100, 100), 120, np.uint8)
    pixels[:3], pixels[-3:] = 0, 255
    seen = look(Image.fromarray(pixels).resize((96, 96), Image.Resampling.NEAREST))
    assert (seen.low, seen.high) == (120, 120)


@pytest.mark.parametrize("size", [(96, 96), (400, 300)])
def test_blur_makes_an_image_less_sharp_at_every_size(look, size):
    sharp = draw_photo(size)
    levels = [
        look(sharp.filter(ImageFilter.GaussianBlur(share * min(size)))).sharpness
        for share in (0, 0.01, 0.03)
    ]
    assert levels[0] > 2 * levels[1] > 10 * levels[2]


def test_less_contrast_is_not_blur(look):
    usual, flat = look(draw_photo()), look(draw_photo().point(lambda value: 100 + value // 4))
    assert flat.contrast < usual.contrast / 3
    assert flat.sharpness == pytest.approx(usual.sharpness, rel=0.3)


SOUND = [
    encode_image(draw_photo((40, 30)), kind)
    for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")
]


@pytest.mark.fuzz
@quick
@given(
    st.sampled_from(SOUND),
    st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), max_size=8),
    st.floats(0.02, 1),
)
def test_whatever_a_file_holds_there_is_a_look(tmp_path_factory, content, changes, share):
    content = bytearray(content)
    for position, value in changes:
        content[position % len(content)] = value
    file = tmp_path_factory.getbasetemp() / "changed.img"
    file.write_bytes(content[: int(len(content) * share)])
    seen = measure_image(file)
    assert seen.problem in ("", "empty_file", "unreadable", "damaged")
    assert (seen.problem == "") == (seen.reason == "")
    assert len(seen.thumb) == 432
