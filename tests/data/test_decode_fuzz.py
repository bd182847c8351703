"""Thousands of damaged images: the decoder returns an image or raises ImageError.

It never warns.
"""

import io
import random
import struct
import subprocess
import sys
import warnings
import zlib
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from finetune_core.data.decode import (
    FORMATS,
    ImageHeader,
    encode_thumbnail,
    read_header,
    read_image,
)
from finetune_core.errors import ImageError

quick = settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)

ROUNDS = 20  # damaged copies of each image in each way
MAGIC = [
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"BM",
    b"GIF89a",
    b"RIFF\x00\x00\x00\x00WEBP",
    b"II*\0",
    b"MM\0*",
    b"P6 ",
    b"P5 ",
]


def encode_image(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make_picture(mode):
    """Return 24 × 16 pixels that are not uniform."""
    pixels = np.add.outer(np.arange(16) * 9, np.arange(24) * 5).astype(np.uint8)
    return Image.fromarray(np.dstack([pixels, pixels.T.reshape(16, 24), 255 - pixels])).convert(
        mode
    )


def seeds():
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.fromarray(np.arange(384, dtype=np.uint16).reshape(16, 24) * 170)
    frames = {
        "save_all": True,
        "append_images": [make_picture("L").convert("RGB").rotate(90 * turn) for turn in (1, 2)],
    }
    return {
        "JPEG": encode_image(make_picture("RGB"), "JPEG", exif=exif),
        "JPEG, progressive": encode_image(make_picture("RGB"), "JPEG", progressive=True),
        "JPEG, CMYK": encode_image(make_picture("CMYK"), "JPEG"),
        "PNG": encode_image(make_picture("RGBA"), "PNG"),
        "PNG, palette": encode_image(make_picture("P"), "PNG", transparency=3, exif=exif),
        "PNG, 16 bits": encode_image(wide, "PNG"),
        "WebP": encode_image(make_picture("RGB"), "WEBP", exif=exif),
        "WebP, lossless": encode_image(make_picture("RGBA"), "WEBP", lossless=True),
        "WebP, animated": encode_image(make_picture("RGB"), "WEBP", **frames),
        "TIFF": encode_image(make_picture("RGB"), "TIFF", exif=exif),
        "TIFF, packed": encode_image(make_picture("RGB"), "TIFF", compression="tiff_lzw"),
        "TIFF, pages": encode_image(
            make_picture("L"), "TIFF", compression="tiff_adobe_deflate", **frames
        ),
        "TIFF, floating point": encode_image(
            Image.fromarray(np.linspace(-1, 1, 384, dtype=np.float32).reshape(16, 24)), "TIFF"
        ),
        "GIF": encode_image(make_picture("P"), "GIF"),
        "GIF, animated": encode_image(make_picture("RGB"), "GIF", **frames),
        "BMP": encode_image(make_picture("RGB"), "BMP"),
        "BMP, palette": encode_image(make_picture("P"), "BMP"),
        "PPM": encode_image(make_picture("RGB"), "PPM"),
    }


SEEDS = seeds()


def assert_an_image_or_an_error(content):
    """Check that every reader returns an image, or raises ImageError in one line."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        # they are looked for below, where nothing of pytest's is in the way
        warnings.simplefilter("ignore")
        # so that a damaged size does not take the memory
        patch.setattr("finetune_core.data.decode.MAX_PIXELS", 1_000_000)
        for read, is_good in READERS:
            try:
                result = read(content)
            except ImageError as error:
                refusal = str(error)
            else:
                refusal = None
            assert refusal is None or (
                refusal.startswith("The image ") and len(refusal.splitlines()) == 1
            )
            assert refusal or is_good(result)


def is_good_header(header):
    return (
        isinstance(header, ImageHeader)
        and header.width > 0 < header.height
        and header.format in FORMATS
        and header.frames > 0
    )


def is_good_image(image):
    return image.mode == "RGB" and np.asarray(image).shape == (*image.size[::-1], 3)


def is_good_thumbnail(content):
    with Image.open(io.BytesIO(content)) as image:
        return image.format == "JPEG" and image.size == (32, 32)


READERS = (
    (read_header, is_good_header),
    (read_image, is_good_image),
    (partial(read_image, shorter_side=8), is_good_image),
    (partial(encode_thumbnail, side=32), is_good_thumbnail),
)


def flip_bits(content, source):
    """Flip a few bits, more often in the headers than in the pixels."""
    damaged = bytearray(content)
    for _ in range(source.randint(1, 6)):
        position = source.randrange(
            len(damaged) if source.random() < 0.5 else min(64, len(damaged))
        )
        damaged[position] ^= 1 << source.randrange(8)
    return bytes(damaged)


def truncate(content, source):
    return content[: source.randrange(len(content))]


def splice(content, source):
    """Remove, double, randomise or replace a part of the content."""
    start = source.randrange(len(content))
    end = min(len(content), start + source.randint(1, 40))
    other = SEEDS[source.choice(sorted(SEEDS))]
    middle = source.choice(
        [
            b"",
            content[start:end] * 2,
            source.randbytes(end - start),
            other[start:end],
            bytes(end - start),
        ]
    )
    return content[:start] + middle + content[end:]


@pytest.mark.parametrize("name", SEEDS)
def test_images_are_good_and_once_damaged_an_image_or_an_error(name):
    for read, is_good in READERS:
        assert is_good(read(SEEDS[name]))
    for damage in (flip_bits, truncate, splice):
        source = random.Random(f"{name} {damage.__name__}")
        for _ in range(ROUNDS):
            assert_an_image_or_an_error(damage(SEEDS[name], source))


@pytest.mark.fuzz
@quick
@given(st.sampled_from([b"", *MAGIC]), st.binary(max_size=300))
def test_any_bytes_are_an_error_or_an_image(magic, content):
    assert_an_image_or_an_error(magic + content)


@pytest.mark.fuzz
@quick
@given(st.data())
def test_any_changes_to_an_image_are_an_error_or_an_image(data):
    content = bytearray(SEEDS[data.draw(st.sampled_from(sorted(SEEDS)))])
    for position, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=8)
    ):
        content[position] = value
    assert_an_image_or_an_error(bytes(content))


def png_of_size(width, height):
    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


BOMBS = {
    "PNG": png_of_size(100_000, 100_000),
    "PNG, wide": png_of_size(2**31 - 1, 1),
    "PNG, just too large": png_of_size(10_000, 8_948),
    "GIF": struct.pack(
        "<6sHHBBB6xcHHHHB3s",
        b"GIF89a",
        65535,
        65535,
        128,
        0,
        0,
        b",",
        0,
        0,
        65535,
        65535,
        0,
        b"\2\0;",
    ),
    "BMP": b"BM"
    + struct.pack("<IHHI", 54, 0, 0, 54)
    + struct.pack("<IiiHHIIiiII", 40, 100_000, 100_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "PPM": b"P6 100000 100000 255\n",
    "JPEG": SEEDS["JPEG"].replace(
        struct.pack(">BHH", 8, 16, 24), struct.pack(">BHH", 8, 65500, 65500)
    ),
    "TIFF": SEEDS["TIFF"].replace(
        struct.pack("<HHIHH", 256, 4, 1, 24, 0), struct.pack("<HHII", 256, 4, 1, 100_000_000)
    ),
    "WebP": SEEDS["WebP"].replace(bytes((23, 0, 0, 15, 0, 0)), b"\xff" * 6, 1),
}


# decode.py's own filter ends with the collection
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("read", [reader for reader, _ in READERS])
def test_a_size_beyond_reason_is_refused_at_once(read, name):
    with pytest.raises(ImageError, match="claims more than 89 million pixels"):
        read(BOMBS[name])


READ_ALL = """
import sys
from pathlib import Path
from finetune_core.data.decode import read_header, read_image, encode_thumbnail
from finetune_core.errors import ImageError

for file in sorted(Path(sys.argv[1]).iterdir()):
    for read in (read_header, read_image, lambda file: encode_thumbnail(file, 32)):
        try:
            read(file)
        except ImageError:
            continue
"""


def collect_warnings(folder):
    """Return the warnings of a process that reads every image in a folder.

    In a process of its own, nothing of pytest's hides a warning.
    """
    finished = subprocess.run(
        [sys.executable, "-W", "always", "-c", READ_ALL, str(folder)],
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0
    return [line for line in finished.stderr.splitlines() if "Warning: " in line]


def make_long_exif():
    """Return a tag that claims to be larger than the file."""
    content = SEEDS["JPEG"]
    at = content.index(b"Exif\0\0") + 6 + 10
    return content[: at + 4] + struct.pack(">I", 60_000) + content[at + 8 :]


WARNING = {
    "JPEG whose EXIF ends too early": SEEDS["JPEG"].replace(
        b"MM\0*\0\0\0\x08\0\x01", b"MM\0*\0\0\0\x08\0\x09"
    ),
    "JPEG with a tag larger than itself": make_long_exif(),
    "TIFF with more entries than a tag may have": SEEDS["TIFF"].replace(
        struct.pack("<HHI", 257, 4, 1), struct.pack("<HHI", 257, 4, 2)
    ),
    "floating-point TIFF with infinities": encode_image(
        Image.fromarray(np.array([[np.inf, -np.inf, 0, 1]], np.float32)), "TIFF"
    ),
    "floating-point TIFF with a signalling NaN": encode_image(
        Image.fromarray(np.array([[0x7F800001, 0]], np.uint32).view(np.float32)), "TIFF"
    ),
}


@pytest.mark.processes
def test_no_warning_of_a_library_gets_out_whatever_is_damaged(tmp_path):
    for name, content in (SEEDS | WARNING).items():
        (tmp_path / name).write_bytes(content)
    for name, content in SEEDS.items():
        source = random.Random(name)
        for damage in (flip_bits, truncate, splice):
            for number in range(10):
                file = tmp_path / f"{name} {damage.__name__} {number}"
                file.write_bytes(damage(content, source))
    assert collect_warnings(tmp_path) == []
