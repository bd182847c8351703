"""Labelled image sets made from Debian's fonts and Python packages, without a network connection.

Every set is written as ``train/``, ``val/`` and ``test/``. Test images share no font, no emoji and
no part of a photograph with training images.
"""

import colorsys
import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIDE = 96  # pixels
Picture = tuple[str, Image.Image]  # class, image
FONTS = Path("/usr/share/fonts")
LETTERS = "ABCDEFGHIJ"
# first and last code points of blocks of similar emoji
EMOJI = {
    "faces": [(0x1F600, 0x1F644), (0x1F910, 0x1F917), (0x1F920, 0x1F92F), (0x1F970, 0x1F97A)],
    "animals": [(0x1F400, 0x1F43C), (0x1F980, 0x1F9AE)],
    "food": [(0x1F32D, 0x1F32F), (0x1F345, 0x1F37F), (0x1F950, 0x1F96F)],
    "vehicles": [(0x1F680, 0x1F6A4), (0x1F6F0, 0x1F6FC)],
    "clothes": [(0x1F451, 0x1F462), (0x1F97B, 0x1F97F), (0x1F9E2, 0x1F9E6), (0x1FA70, 0x1FA74)],
    "buildings": [(0x1F3D4, 0x1F3F0), (0x26EA, 0x26EA), (0x1F5FB, 0x1F5FF)],
    "clocks": [(0x1F550, 0x1F567)],
    "hearts": [(0x1F491, 0x1F49F), (0x1F5A4, 0x1F5A4), (0x1F90D, 0x1F90E), (0x2764, 0x2764)],
}
PHOTOGRAPHS = {
    "brick": "brick.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "coins": "coins.png",
    "coffee": "coffee.png",
    "cat": "chelsea.png",
    "tissue": "ihc.png",
}
PARTS = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}  # of fonts, photographs …


def _select_part(items: list[str], part: str) -> list[str]:
    """Return the items of a part, the same in every process."""
    ordered = sorted(items, key=lambda item: hashlib.sha256(item.encode()).digest())
    first, last = (round(share * len(ordered)) for share in PARTS[part])
    return ordered[first:last]


def _cycle(items: list[str], random: np.random.Generator) -> Iterator[str]:
    while True:
        yield from random.permutation(items).tolist()


def _draw_background(random: np.random.Generator) -> Image.Image:
    """Return a smooth patch of two colours with noise."""
    corners = random.integers(0, 256, (2, 2, 3), np.uint8)
    smooth = Image.fromarray(corners).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth, float) + random.normal(0, 12, (SIDE, SIDE, 3))
    return Image.fromarray(np.uint8(np.clip(noisy, 0, 255)))


def _choose_colour(random: np.random.Generator) -> tuple[int, ...]:
    red, green, blue = colorsys.hsv_to_rgb(random.random(), 0.7, random.uniform(0.5, 1))
    return tuple(round(255 * value) for value in (red, green, blue))


def draw_glyphs(part: str, random: np.random.Generator) -> Iterator[Picture]:
    """Yield the letters A to J in fonts, as in notMNIST. Each font is in one part only."""
    fonts = [str(path) for path in FONTS.rglob("*") if path.suffix in (".ttf", ".otf", ".t1")]
    usable = [path for path in fonts if "Emoji" not in path and "Symbol" not in path]
    for path in _cycle(_select_part(usable, part), random):
        letter = LETTERS[random.integers(len(LETTERS))]
        layer = Image.new("L", (SIDE, SIDE), 0)
        font = ImageFont.truetype(path, int(random.integers(48, 80)))
        middle = tuple(SIDE / 2 + random.normal(0, 4, 2))
        ImageDraw.Draw(layer).text(middle, letter, fill=255, font=font, anchor="mm")
        if layer.getextrema() != (0, 0):
            yield letter, layer.convert("RGB")


def draw_emoji(part: str, random: np.random.Generator) -> Iterator[Picture]:
    """Yield Noto's emoji by kind on patches of colour. Each emoji is in one part only."""
    (path,) = list(FONTS.rglob("NotoColorEmoji.ttf"))[:1]
    font = ImageFont.truetype(str(path), 109)  # the one size that the font has
    kinds = {
        kind: _select_part(
            [chr(code) for first, last in blocks for code in range(first, last + 1)], part
        )
        for kind, blocks in EMOJI.items()
    }
    endless = {kind: _cycle(items, random) for kind, items in kinds.items()}
    while True:
        kind = list(EMOJI)[random.integers(len(EMOJI))]
        character = next(endless[kind])
        if unicodedata.category(character) == "Cn":
            continue
        layer = Image.new("RGBA", (136, 128), (0, 0, 0, 0))
        ImageDraw.Draw(layer).text((0, 0), character, font=font, embedded_color=True)
        side = int(random.integers(48, 84))
        small = layer.resize((side, side), Image.Resampling.LANCZOS)
        small = small.rotate(random.normal(0, 10), Image.Resampling.BICUBIC)
        picture = _draw_background(random)
        left, top = (int(value) for value in random.integers(0, SIDE - side, 2))
        picture.paste(small, (left, top), small)
        yield kind, picture


def _make_polygon(points: int, inner: float, radius: float, turn: float) -> np.ndarray:
    angles = turn + np.arange(2 * points) * np.pi / points
    radii = radius * np.where(np.arange(2 * points) % 2, inner, 1.0)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)


# class -> number of corners, and the radius between two corners as a share of the corners' radius
SHAPES = {
    "triangle": (3, 0.5),
    "square": (4, 0.7071),
    "pentagon": (5, 0.809),
    "disc": (24, 0.995),
    "star of four": (4, 0.35),
    "star of five": (5, 0.4),
    "star of six": (6, 0.55),
    "star of nine": (9, 0.6),
}


def draw_shapes(part: str, random: np.random.Generator) -> Iterator[Picture]:
    """Yield shapes of any colour, size, position and rotation on patches of colour."""
    while True:
        name = list(SHAPES)[random.integers(len(SHAPES))]
        corners, inner = SHAPES[name]
        radius = random.uniform(16, 38)
        points = _make_polygon(corners, inner, radius, random.uniform(0, 2 * np.pi))
        middle = random.uniform(radius, SIDE - radius, 2)
        picture = _draw_background(random)
        outline = [tuple(point) for point in points + middle]
        ImageDraw.Draw(picture).polygon(outline, fill=_choose_colour(random))
        yield name, picture.filter(ImageFilter.GaussianBlur(random.uniform(0, 1.2)))


def draw_textures(part: str, random: np.random.Generator) -> Iterator[Picture]:
    """Yield gratings of eight directions under noise, which first layers can distinguish."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    while True:
        direction = int(random.integers(8))
        angle = (direction + random.uniform(-0.3, 0.3)) * np.pi / 8
        wave = rows * np.sin(angle) + columns * np.cos(angle)
        wave = np.sin(wave * 2 * np.pi / random.uniform(4, 12) + random.uniform(0, 2 * np.pi))
        gray = 128 + random.uniform(20, 60) * wave[..., None]
        pixels = gray + random.normal(0, 45, (SIDE, SIDE, 3)) + random.normal(0, 20, 3)
        yield f"direction {direction}", Image.fromarray(np.uint8(np.clip(pixels, 0, 255)))


def cut_photographs(part: str, random: np.random.Generator) -> Iterator[Picture]:
    """Yield patches of scikit-image's photographs. Each pixel column is in one part only."""
    skimage = find_spec("skimage")
    if skimage is None or skimage.origin is None:
        raise SystemExit("The photographs are scikit-image's: pip install scikit-image")
    folder = Path(skimage.origin).parent / "data"
    photographs = {
        name: Image.open(folder / file).convert("RGB") for name, file in PHOTOGRAPHS.items()
    }
    while True:
        name = list(photographs)[random.integers(len(photographs))]
        photograph = photographs[name]
        left, right = (share * photograph.width for share in PARTS[part])
        side = int(random.integers(32, min(90, int(right - left))))
        x = int(random.integers(int(left), int(right) - side))
        y = int(random.integers(0, photograph.height - side))
        patch = photograph.crop((x, y, x + side, y + side)).resize((SIDE, SIDE))
        pixels = np.asarray(patch.rotate(90 * int(random.integers(4))), float)
        pixels = pixels * random.uniform(0.5, 1.4) + random.normal(0, 22, pixels.shape)
        yield name, Image.fromarray(np.uint8(np.clip(pixels, 0, 255)))


def read_digits(part: str, random: np.random.Generator) -> Iterator[Picture]:
    """Yield each of scikit-learn's handwritten digits once."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    first, last = (round(share * len(order)) for share in PARTS[part])
    for row in random.permutation(order[first:last]):
        gray = Image.fromarray(np.uint8(digits.images[row] * 255 / 16))
        yield str(digits.target[row]), gray.resize((SIDE, SIDE), Image.Resampling.NEAREST)


SETS: dict[str, Callable[[str, np.random.Generator], Iterable[Picture]]] = {
    "digits": read_digits,
    "glyphs": draw_glyphs,
    "emoji": draw_emoji,
    "shapes": draw_shapes,
    "textures": draw_textures,
    "photographs": cut_photographs,
}
NUM_TEST = 600  # at most; digits has fewer


def write_set(name: str, num_train: int, root: Path, seed: int = 0) -> Path:
    """Write ``num_train`` training images, a fifth as many validation images, and test images.

    Returns:
        The folder below ``root``. An existing folder is reused.
    """
    folder = root / f"{name}-{num_train}-{seed}"
    if folder.exists():
        return folder
    partial = folder.with_suffix(".part")
    counts = {"train": num_train, "val": max(40, num_train // 5), "test": NUM_TEST}
    for part, count in counts.items():
        random = np.random.default_rng([seed, list(counts).index(part)])
        for number, (label, picture) in enumerate(islice(SETS[name](part, random), count)):
            target = partial / part / label
            target.mkdir(parents=True, exist_ok=True)
            picture.save(target / f"{number:05d}.png")
    partial.rename(folder)
    return folder
