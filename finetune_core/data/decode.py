"""Decoding of image files. Every image that Thaw reads is decoded here."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from finetune_core.errors import ImageError
from finetune_core.files import NotRegularFileError, open_regular

EXTENSIONS = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".jfif",
        ".png",
        ".bmp",
        ".gif",
        ".webp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
    )
)
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")

# Pillow warns above this many pixels and refuses twice as many. Thaw refuses both.
MAX_PIXELS = 89_478_485
# For the whole process: a filter for one block affects every thread, too, and may stay for good.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Pillow warns of damaged metadata, which Thaw does not need.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
Image.init()

_ORIENTATION_TAG = 0x0112
_BACKGROUND = (255, 255, 255)
_BARS = (128, 136, 144)  # of a thumbnail: visible on a white page and on a dark one


@dataclass(frozen=True)
class ImageHeader:
    """Facts of an image's header, without decoding the image.

    Attributes:
        width: pixels as shown, after EXIF orientation.
        height: pixels as shown, after EXIF orientation.
        mode: Pillow's name of the colour mode.
        format: Pillow's name of the file format.
        frames: 2 stands for any number above one, of an animation or a TIFF of several pages,
            because counting them means reading the whole file.
    """

    width: int
    height: int
    mode: str
    format: str
    frames: int = 1


BILINEAR, BICUBIC = "bilinear", "bicubic"
INTERPOLATIONS = {BILINEAR: Image.Resampling.BILINEAR, BICUBIC: Image.Resampling.BICUBIC}
CROP, PAD = "crop", "pad"
PADDING = (124, 116, 104)  # ImageNet's mean colour: 0 to a network with its normalisation


@dataclass(frozen=True)
class Resize:
    """The way in which an image becomes a square of pixels.

    Attributes:
        side: side of the square, in pixels.
        interpolation: one of ``INTERPOLATIONS``.
        fit: ``crop`` resizes the shorter side to ``side`` and crops the centre; ``pad`` resizes the
            longer side and fills the rest with ``PADDING``.
    """

    side: int
    interpolation: str = BILINEAR
    fit: str = CROP


def read_header(source: Path | bytes) -> ImageHeader:
    """Read only the header of an image.

    Raises:
        ImageError: if the file is no image, has a format that is not allowed, or claims too many
            pixels.
    """
    with _open_image(source) as image:
        return _make_header(image)


def read_image(source: Path | bytes, shorter_side: int | None = None) -> Image.Image:
    """Decode an image to upright 8-bit RGB.

    Transparent pixels become white. Of an animation the first frame is decoded.

    Args:
        source: a file, or its bytes.
        shorter_side: if given, a JPEG may be decoded at a lower scale that is still at least this
            large, in pixels.

    Raises:
        ImageError: if the image cannot be decoded to the last row.
    """
    with _open_image(source) as image:
        return _decode(image, shorter_side)


def read_with_header(
    source: Path | bytes, shorter_side: int | None = None
) -> tuple[ImageHeader, Image.Image | ImageError]:
    """Read header and image, opening the file once.

    Returns:
        The results of ``read_header`` and ``read_image``; in place of the image an error if it
        cannot be decoded.

    Raises:
        ImageError: as for ``read_header``.
    """
    header = None
    try:
        with _open_image(source) as image:
            header = _make_header(image)
            return header, _decode(image, shorter_side)
    except ImageError as error:
        if header is None:
            raise
        return header, error


def read_square(source: Path | bytes, resize: Resize) -> np.ndarray:
    """Read an image as uint8 ``[side, side, 3]``.

    With ``fit="crop"`` this is torchvision's evaluation transform up to its last crop.

    Raises:
        ImageError: if the image cannot be decoded.
    """
    side, how = resize.side, INTERPOLATIONS[resize.interpolation]
    image = read_image(source, side)
    if resize.fit == CROP:
        return np.asarray(ImageOps.fit(image, (side, side), how))
    scale = side / max(image.size)
    size = [max(1, round(length * scale)) for length in image.size]
    return np.asarray(_paste_centered(image.resize(size, how), side, PADDING))


def read_scaled(source: Path | bytes, longer_side: int) -> Image.Image:
    """Read an image, and resize its longer side to ``longer_side`` pixels.

    The pixels of a smaller image become squares.

    Raises:
        ImageError: if the image cannot be decoded.
    """
    image = read_image(source, longer_side)
    image.thumbnail((longer_side, longer_side))
    if max(image.size) < longer_side:
        scale = longer_side / max(image.size)
        image = image.resize(
            [max(1, round(length * scale)) for length in image.size], Image.Resampling.NEAREST
        )
    return image


def encode_thumbnail(source: Path | bytes, side: int) -> bytes:
    """Return a JPEG of ``side × side`` pixels that shows the whole image, letterboxed.

    Thumbnails of images of any shape have the same size.

    Raises:
        ImageError: if the image cannot be decoded.
    """
    buffer = io.BytesIO()
    _paste_centered(read_scaled(source, side), side, _BARS).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _paste_centered(image: Image.Image, side: int, color: tuple[int, int, int]) -> Image.Image:
    square = Image.new("RGB", (side, side), color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _make_header(image: Image.Image) -> ImageHeader:
    width, height = image.size
    if _is_rotated_by_quarter(image):
        width, height = height, width
    return ImageHeader(
        width, height, image.mode, image.format or "", 1 + getattr(image, "is_animated", False)
    )


def _decode(image: Image.Image, shorter_side: int | None) -> Image.Image:
    if shorter_side is not None:
        image.draft("RGB", (shorter_side, shorter_side))
    image.load()
    return _to_rgb(ImageOps.exif_transpose(image))


def _is_rotated_by_quarter(image: Image.Image) -> bool:
    """Return whether the EXIF data rotate the image by a quarter turn."""
    if image.format == "TIFF":  # Pillow gives a TIFF's size as shown
        return False
    # Reading a header has to be quick, but Pillow decodes a whole PNG in search of EXIF data.
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return False
    return image.getexif().get(_ORIENTATION_TAG) in (5, 6, 7, 8)


@contextmanager
def _open_image(source: Path | bytes) -> Iterator[Image.Image]:
    """Open an image, and turn any error of the block into an ImageError.

    On damaged bytes Pillow's plugins raise nearly anything.
    """
    try:
        # Pillow would map some files into memory if it opened them itself, and a file that shrinks
        # meanwhile would kill the process.
        with (
            open(open_regular(source, follow=True), "rb")
            if isinstance(source, Path)
            else io.BytesIO(source) as file
        ):
            _check_pixels(*_read_webp_size(file.read(30)))
            with Image.open(file, formats=FORMATS) as image:
                _check_pixels(*image.size)
                yield image
    except UnidentifiedImageError:
        raise ImageError(
            f"{_display_name(source)} is not an image in a format that Thaw reads"
        ) from None
    except Image.DecompressionBombError:
        raise ImageError(
            f"{_display_name(source)} claims more than {MAX_PIXELS / 1e6:.0f} million pixels; "
            "make it smaller first"
        ) from None
    except FileNotFoundError:
        raise ImageError(f"{_display_name(source)} is not there") from None
    except NotRegularFileError as error:
        raise ImageError(
            f"{_display_name(source)} is {error.strerror}, not an image file"
        ) from None
    except Exception as error:
        # An error with a file name comes from the system, not from a decoder.
        if isinstance(error, OSError) and error.filename is not None:
            raise ImageError(
                f"{_display_name(source)} cannot be opened: {error.strerror}"
            ) from None
        raise ImageError(f"{_display_name(source)} is damaged or cut short: {error}") from None


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Image.DecompressionBombError


def _read_webp_size(head: bytes) -> tuple[int, int]:
    """Return the width and height that the first 30 bytes of a WebP file claim, or zeros.

    Pillow allocates 8 bytes per pixel to open a WebP file.
    """

    def bits(first: int, count: int) -> int:
        return int.from_bytes(head[20:], "little") >> first & (1 << count) - 1

    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        match head[12:16]:
            case b"VP8 ":
                return bits(48, 14), bits(64, 14)
            case b"VP8L":
                return bits(8, 14) + 1, bits(22, 14) + 1
            case b"VP8X":
                return bits(32, 24) + 1, bits(56, 24) + 1
    return 0, 0


def _display_name(source: Path | bytes) -> str:
    return source.name if isinstance(source, Path) else "The image"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _wide_to_rgb(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        flat = Image.new("RGB", rgba.size, _BACKGROUND)
        flat.paste(rgba, mask=rgba.getchannel("A"))
        return flat
    return image.convert("RGB")


def _wide_to_rgb(image: Image.Image) -> Image.Image:
    """Convert 16-bit, 32-bit or floating-point gray to RGB.

    16-bit gray keeps its upper 8 bits. 32-bit and floating-point gray has no fixed range, so its
    finite values are stretched to 8 bits. Infinite values become white or black, and NaN becomes
    black.
    """
    # The conversion warns of some NaNs.
    with np.errstate(invalid="ignore"):
        gray = np.asarray(image).astype(np.float64)
    gray[np.isnan(gray)] = -np.inf
    finite = np.isfinite(gray)
    low, high = gray.min(where=finite, initial=np.inf), gray.max(where=finite, initial=-np.inf)
    if image.mode.startswith("I;16") or (image.mode == "I" and low >= 0 and 255 < high <= 65535):
        gray /= 257
    elif high > low:
        gray -= low
        gray *= 255 / (high - low)
    return Image.fromarray(np.rint(gray.clip(0, 255, out=gray), out=gray).astype(np.uint8)).convert(
        "RGB"
    )
