import io
import os
import struct

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from PIL.GifImagePlugin import GifImageFile

from finetune_core.data import decode
from finetune_core.data.decode import (
    ImageHeader,
    Resize,
    encode_thumbnail,
    read_header,
    read_image,
    read_square,
    read_with_header,
)
from finetune_core.errors import ImageError
from tests.deadline import in_time


def encode_image(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def quarters():
    """Return 16 × 8 pixels with a colour per quarter: red, green / blue, black."""
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:4, :8] = (255, 0, 0)
    pixels[:4, 8:] = (0, 255, 0)
    pixels[4:, :8] = (0, 0, 255)
    return Image.fromarray(pixels)


def turn_image(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode_image(
        quarters(), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {})
    )


# What has to be done to the stored pixels so that they are shown upright: EXIF's own definition.
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.transpose(1, 0, 2), 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_pixels(orientation, kind):
    expected = TURNS[orientation](np.asarray(quarters()))
    np.testing.assert_array_equal(np.asarray(read_image(turn_image(kind, orientation))), expected)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_header_says_the_size_as_shown(orientation, kind):
    header = read_header(turn_image(kind, orientation))
    assert (header.width, header.height) == (8, 16)


def test_a_png_header_says_the_size_as_shown_where_its_exif_is_in_a_text_chunk():
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = exif.tobytes()
    text = PngImagePlugin.PngInfo()
    text.add_text(
        "Raw profile type exif", f"\nexif\n{len(profile):8d}\n{profile.hex()}\n", zip=True
    )
    content = encode_image(quarters(), pnginfo=text)
    header = read_header(content)
    assert (header.width, header.height) == read_image(content).size


def test_exif_orientation_of_a_jpeg_is_undone_once():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode_image(
        quarters().resize((64, 32), Image.Resampling.NEAREST), "JPEG", exif=exif, quality=95
    )
    image = read_image(content)
    assert image.size == (32, 64)
    assert image.getpixel((24, 16))[0] > 200  # red was top left, is now top right
    assert 0x0112 not in image.getexif()


def test_palette_shows_its_colours():
    image = read_image(encode_image(quarters().quantize(4)))
    assert image.mode == "RGB"
    np.testing.assert_allclose(np.asarray(image, int), np.asarray(quarters(), int), atol=3)


def row(mode, *values):
    """Build an image of one row of pixels."""
    image = Image.new(mode, (len(values), 1))
    image.putdata(values)
    return image


def numbers(dtype, *values):
    return Image.fromarray(np.array([values], dtype))


def palette():
    image = row("P", 0, 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    return image


def ink(*values):
    return encode_image(Image.new("CMYK", (16, 16), values), "JPEG", quality=95)


WIDE, INF = (0, 257 * 10, 257 * 128, 65535), np.inf
# Name -> content, and the pixels that are shown.
SHOWN = {
    "gray": (encode_image(Image.new("L", (4, 4), 77), "JPEG", quality=100), [77]),
    "transparent palette entry": (encode_image(palette(), transparency=0), [255, (200, 100, 50)]),
    "transparency": (
        encode_image(row("RGBA", (255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 128))),
        [(255, 0, 0), 255, 127],
    ),
    "gray with alpha": (encode_image(row("LA", (30, 255), (30, 0))), [30, 255]),
    "one bit": (encode_image(row("1", 0, 255)), [0, 255]),
    "printed red": (ink(0, 255, 255, 0), [(255, 0, 0)]),
    "printed black": (ink(0, 0, 0, 255), [0]),
    "no ink": (ink(0, 0, 0, 0), [255]),
    "16-bit PNG": (encode_image(numbers(np.uint16, *WIDE)), [0, 10, 128, 255]),
    "16-bit TIFF": (encode_image(numbers(np.uint16, *WIDE), "TIFF"), [0, 10, 128, 255]),
    "floats": (encode_image(numbers(np.float32, -1, 0, 1), "TIFF"), [0, 128, 255]),
    "floats of one value": (encode_image(numbers(np.float32, 7, 7), "TIFF"), [7, 7]),
    "floats beyond any range": (
        encode_image(numbers(np.float32, np.nan, -INF, -3e38, 0, 3e38, INF), "TIFF"),
        [0, 0, 0, 128, 255, 255],
    ),
    "infinity": (encode_image(numbers(np.float32, INF, INF), "TIFF"), [255, 255]),
    "minus infinity": (encode_image(numbers(np.float32, -INF, -INF), "TIFF"), [0, 0]),
    "no number": (encode_image(numbers(np.float32, np.nan, np.nan), "TIFF"), [0, 0]),
    "16-bit integers of 32 bits": (
        encode_image(numbers(np.int32, 0, 257, 65535), "TIFF"),
        [0, 1, 255],
    ),
    "negative integers": (encode_image(numbers(np.int32, -100, 0, 155), "TIFF"), [0, 100, 255]),
    "large integers": (encode_image(numbers(np.int32, 0, 1, 2**31 - 1), "TIFF"), [0, 0, 255]),
}


@pytest.mark.parametrize(("content", "expected"), SHOWN.values(), ids=SHOWN)
def test_pixels_of_every_kind_are_shown_in_8_bits_of_rgb(content, expected):
    image = read_image(content)
    assert image.mode == "RGB"
    shown = np.asarray(image, int)[0, : len(expected)]
    expected = [np.broadcast_to(colour, 3) for colour in expected]
    np.testing.assert_allclose(shown, expected, atol=6 if len(shown) == 1 else 1)


def test_an_animation_shows_its_first_frame():
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue", "green")]
    content = encode_image(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(content)).n_frames == 3
    assert read_image(content).getpixel((2, 2)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_a_header_tells_one_frame_from_several(kind):
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue", "green")]
    assert read_header(encode_image(frames[0], kind)).frames == 1
    assert (
        read_header(encode_image(frames[0], kind, save_all=True, append_images=frames[1:])).frames
        == 2
    )


def test_a_header_is_read_without_counting_the_frames_that_follow(monkeypatch):
    monkeypatch.setattr(
        GifImageFile,
        "n_frames",
        property(lambda _: pytest.fail("they were counted, which takes a second")),
    )
    frame = struct.pack("<B4H3B", 0x2C, 0, 0, 10, 10, 0, 2, 0)
    content = struct.pack("<6s2HB8x", b"GIF89a", 10, 10, 128) + frame * 1_000_000 + b";"
    assert read_header(content).frames == 2


def test_a_file_and_its_bytes_give_the_same(tmp_path):
    file = tmp_path / "it's <b>an 🦦.png"
    file.write_bytes(encode_image(quarters()))
    np.testing.assert_array_equal(
        np.asarray(read_image(file)), np.asarray(read_image(file.read_bytes()))
    )
    assert read_header(file) == read_header(file.read_bytes()) == ImageHeader(16, 8, "RGB", "PNG")


def several(kind, count):
    frames = [quarters().rotate(90 * number) for number in range(count)]
    return encode_image(
        frames[0], kind, **({"save_all": True, "append_images": frames[1:]} if count > 1 else {})
    )


KINDS = {
    **{
        f"{kind} turned {turn}": turn_image(kind, turn)
        for kind in ("PNG", "TIFF", "WEBP", "JPEG")
        for turn in (1, 6, 7)
    },
    **{
        f"{count} of {kind}": several(kind, count)
        for kind in ("GIF", "WEBP", "TIFF", "PNG")
        for count in (1, 2, 3)
    },
    **{
        mode: encode_image(quarters().convert(mode), "PNG")
        for mode in ("P", "L", "1", "RGBA", "LA", "I;16")
    },
    "palette of GIF": encode_image(quarters().convert("P"), "GIF", transparency=0),
    "CMYK": encode_image(quarters().convert("CMYK"), "JPEG"),
    "large JPEG": encode_image(quarters().resize((640, 320)), "JPEG"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_header_and_image_at_once_are_those_that_are_read_apart(kind):
    for side in (None, 5, 96):
        header, image = read_with_header(KINDS[kind], side)
        apart = read_image(KINDS[kind], side)
        assert header == read_header(KINDS[kind])
        shown = image.mode, image.size, image.tobytes()
        assert shown == (apart.mode, apart.size, apart.tobytes())


@pytest.mark.parametrize("kind", KINDS)
def test_header_and_image_at_once_fail_as_they_do_apart(kind):
    for keep in (0.1, 0.5, 0.8, 0.95):
        content = KINDS[kind][: int(keep * len(KINDS[kind]))]
        try:
            expected = read_header(content), read_image(content).tobytes()
        except ImageError as error:
            expected = str(error)
        try:
            header, image = read_with_header(content)
            found = str(image) if isinstance(image, ImageError) else (header, image.tobytes())
        except ImageError as error:
            found = str(error)
        assert found == expected


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_file_is_refused_by_name(tmp_path, kind):
    random = np.random.default_rng(0)
    content = encode_image(Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8)), kind)
    file = tmp_path / "half.img"
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=r"half\.img is damaged or cut short"):
        read_image(file)
    with pytest.raises(ImageError, match=r"half\.img"):
        read_image(file, shorter_side=8)


@pytest.mark.parametrize(
    "reader",
    [
        read_header,
        read_image,
        lambda file: read_square(file, Resize(8)),
        lambda file: encode_thumbnail(file, 8),
    ],
)
@pytest.mark.parametrize(
    "content", [b"", b"this is no picture\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>"]
)
def test_a_file_that_is_no_image_is_refused_by_name(tmp_path, reader, content):
    file = tmp_path / "notes.jpg"
    file.write_bytes(content)
    with pytest.raises(ImageError, match=r"notes\.jpg is not an image"):
        reader(file)


def test_a_format_that_is_not_listed_is_refused(tmp_path):
    file = tmp_path / "drawing.jpg"
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    with pytest.raises(ImageError, match=r"drawing\.jpg is not an image"):
        read_image(file)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(ImageError, match=r"^gone\.png is not there$"):  # it may never have been
        read_image(tmp_path / "gone.png")


def webp(kind, content):
    return (
        b"RIFF" + struct.pack("<I4s4sI", 12 + len(content), b"WEBP", kind, len(content)) + content
    )


LARGE_WEBP = {  # to open the first, Pillow reserves a gigabyte
    "lossless": bytes.fromhex(
        "524946464e000000574542505650384c410000002f783be517f9574cfd04723cebc78aeed0abb2d04e25e17433ef4e226ddbd050d94f906d4335bc091d"
        "6f020fb5691b304e59933bd0a925cf1ad077fc580abe591400"
    ),
    "lossy": webp(b"VP8 ", struct.pack("<6s2H", b"\x30\1\0\x9d\1\x2a", 15225, 8085 | 1 << 14)),
    "extended": webp(
        b"VP8X", b"\x10\0\0\0" + (15224).to_bytes(3, "little") + (8084).to_bytes(3, "little")
    ),
    "shortest": webp(b"VP8L", struct.pack("<BI", 0x2F, 15224 | 8084 << 14)),
}


@pytest.mark.parametrize("reader", [read_header, read_image])
@pytest.mark.parametrize("kind", LARGE_WEBP)
def test_a_webp_bomb_is_refused_before_pillow_opens_it(tmp_path, monkeypatch, reader, kind):
    monkeypatch.setattr(Image, "open", None)
    file = tmp_path / "bomb.jpg"
    file.write_bytes(LARGE_WEBP[kind])
    for source in (file, LARGE_WEBP[kind]):
        with pytest.raises(
            ImageError, match=r"(bomb\.jpg|The image) claims more than 89 million pixels"
        ):
            reader(source)


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0", "quality": 90}])
def test_a_webp_claims_the_size_that_it_has(monkeypatch, options):
    content = encode_image(Image.new("RGB", (300, 700)), "WEBP", **options)
    assert read_header(content).width == 300
    monkeypatch.setattr(decode, "MAX_PIXELS", 300 * 700 - 1)
    monkeypatch.setattr(Image, "open", None)
    with pytest.raises(ImageError, match="claims more than"):
        read_header(content)


def test_the_pixel_limit_is_pillows():
    assert decode.MAX_PIXELS == Image.MAX_IMAGE_PIXELS


def test_a_jpeg_read_small_is_at_least_as_large_as_asked():
    content = encode_image(quarters().resize((800, 400)), "JPEG")
    image = read_image(content, shorter_side=60)
    assert 60 <= min(image.size) < 400


def test_a_square_is_the_centre_of_the_image():
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 255
    square = read_square(encode_image(Image.fromarray(pixels)), Resize(10))
    assert square.shape == (10, 10, 3)
    assert square.dtype == np.uint8
    np.testing.assert_array_equal(square, 255)


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (7, 9)])
def test_a_square_of_any_image(size, fit):
    square = read_square(encode_image(Image.new("RGB", size, "red")), Resize(16, fit=fit))
    assert square.shape == (16, 16, 3)
    assert (square == (255, 0, 0)).all(axis=2).any()


@pytest.mark.parametrize("size", [(200, 100), (8, 4), (38, 311), (1, 500), (64, 64)])
def test_a_thumbnail_is_a_square_jpeg_with_the_whole_image_in_its_middle(size):
    small = Image.open(
        io.BytesIO(encode_thumbnail(encode_image(Image.new("RGB", size, (250, 0, 0))), 64))
    )
    assert (small.format, small.size) == ("JPEG", (64, 64))
    pixels = np.asarray(small).astype(int)
    expected = [max(1, round(64 * length / max(size))) for length in size]
    if min(expected) > 8:  # where JPEG's blocks do not smear it
        red = pixels[..., 0] - pixels[..., 1] > 120
        rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
        assert abs(np.ptp(columns) + 1 - expected[0]) <= 2
        assert abs(np.ptp(rows) + 1 - expected[1]) <= 2
        assert abs(rows.mean() - 31.5) <= 1
        assert abs(columns.mean() - 31.5) <= 1


def test_what_is_beside_a_letterboxed_image_is_neither_white_nor_black():
    small = np.asarray(
        Image.open(
            io.BytesIO(encode_thumbnail(encode_image(Image.new("RGB", (38, 311), "red")), 160))
        )
    )
    assert (small[:, :20] > 90).all()
    assert (small[:, :20] < 180).all()


@pytest.mark.parametrize(("kind", "position"), [("PNG", 36), ("PNG", 11), ("PPM", 5)])
def test_damage_on_which_pillow_raises_other_than_oserror_is_an_image_error(
    tmp_path, kind, position
):
    content = bytearray(encode_image(quarters(), kind))
    content[position] = 0
    file = tmp_path / "damaged.img"
    file.write_bytes(content)
    with pytest.raises(ImageError, match=r"damaged\.img"):
        read_image(file)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs in folders here")
@pytest.mark.parametrize("reader", [read_header, read_image])
def test_a_fifo_that_is_named_like_an_image_is_not_waited_for(tmp_path, reader):
    os.mkfifo(tmp_path / "real.png")
    (tmp_path / "link.png").symlink_to("real.png")
    for name in ("real.png", "link.png"):
        with in_time("reading"), pytest.raises(ImageError, match=rf"{name}.*FIFO"):
            reader(tmp_path / name)


def test_an_image_behind_a_link_is_read(tmp_path):
    quarters().save(tmp_path / "real.png")
    (tmp_path / "link.png").symlink_to("real.png")
    assert read_image(tmp_path / "link.png").size == (16, 8)
