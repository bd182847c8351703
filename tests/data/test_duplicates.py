import io
from functools import partial

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from finetune_core.data import duplicates
from finetune_core.data.closeness import load_gray_squares
from finetune_core.data.duplicates import find_near_duplicates, merge_groups
from finetune_core.data.image_stats import measure_image
from finetune_core.data.sample import write_digits_folder
from finetune_core.work import Step
from tests.drain import drain


def compared(files):
    """Return near-duplicate sets and closeness of image files."""
    looks = [measure_image(file) for file in files]
    thumbs = pd.Series([look.thumb for look in looks], dtype="object")
    content = np.array([look.content for look in looks], dtype=np.uint64)
    return drain(
        find_near_duplicates(
            thumbs,
            content,
            lambda positions, side: load_gray_squares([files[at] for at in positions], side),
        )
    )[1]


def find_sets(files):
    return compared(files)[0]


def make_squares(thumbs):
    """Return ``squares`` for images that exist only as thumbnails."""

    def squares(positions, side):
        for at in positions:
            small = Image.fromarray(
                np.frombuffer(thumbs.iloc[at], np.uint8).reshape(12, 12, 3)
            ).convert("L")
            yield np.asarray(small.resize((side, side), Image.Resampling.BILINEAR))

    return squares


def find_sets_of_vectors(pixels, content=None):
    thumbs = pd.Series([one.astype(np.uint8).tobytes() for one in pixels], dtype="object")
    content = (
        np.arange(len(thumbs), dtype=np.uint64)
        if content is None
        else np.array(content, dtype=np.uint64)
    )
    return drain(find_near_duplicates(thumbs, content, make_squares(thumbs)))[1][0]


def draw_photo(seed, size=(192, 128)):
    """Draw slow changes of light, and shapes with edges."""
    random = np.random.default_rng(seed)
    image = Image.fromarray(random.integers(0, 256, (3, 4, 3), np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    draw = ImageDraw.Draw(image)
    for x, y, *colour in random.integers(0, 256, (12, 5)):
        left, top = x * size[0] // 256, y * size[1] // 256
        draw.ellipse((left, top, left + size[0] // 4, top + size[1] // 4), tuple(map(int, colour)))
    return image


def save_again(quality):
    def change(image):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return change


def scale_by(factor):
    return lambda image: image.resize(
        [round(side * factor) for side in image.size], Image.Resampling.BILINEAR
    )


def add_noise(image):
    pixels = np.asarray(image)
    return Image.fromarray(
        np.uint8(np.clip(pixels + np.random.default_rng(0).normal(0, 6, pixels.shape), 0, 255))
    )


def enhance_by(kind, factor):
    return lambda image: kind(image).enhance(factor)


CHANGES = {
    **{f"JPEG quality {quality}": save_again(quality) for quality in (30, 60, 90)},
    **{f"scaled by {factor}": scale_by(factor) for factor in (0.75, 1.5)},
    **{f"brightness × {by}": enhance_by(ImageEnhance.Brightness, by) for by in (0.7, 1.2)},
    **{f"contrast × {by}": enhance_by(ImageEnhance.Contrast, by) for by in (0.7, 1.3)},
    "noise": add_noise,
}


@pytest.fixture(scope="module", params=["digits", "photos"])
def distinct(request, home_of_shared_fixtures, tmp_path_factory):
    """Files of distinct images."""
    if request.param == "digits":
        files = sorted(write_digits_folder().glob("*/*.png"))[::2]
    else:
        files = [tmp_path_factory.getbasetemp() / f"photo{seed}.png" for seed in range(60)]
        for seed, file in enumerate(files):
            draw_photo(seed).save(file)
    return files


DEAR = ["JPEG quality 30", "scaled by 0.75", "brightness × 0.7", "noise"]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(name, marks=pytest.mark.train if name in DEAR else pytest.mark.exhaustive)
        for name in CHANGES
    ],
)
def test_nine_of_ten_near_duplicates_land_in_the_set_of_their_original(distinct, change, tmp_path):
    chosen = np.random.default_rng(1).choice(len(distinct), 40, replace=False)
    planted = [tmp_path / f"{number}.bmp" for number in chosen]
    for number, file in zip(chosen, planted, strict=True):
        CHANGES[change](Image.open(distinct[number]).convert("RGB")).save(file)
    sets = find_sets([*distinct, *planted])
    assert np.mean(sets[len(distinct) :] == sets[chosen]) >= 0.9


@pytest.mark.train
def test_distinct_images_are_rarely_taken_for_near_duplicates(distinct):
    sets = find_sets(distinct)
    assert (np.bincount(sets)[sets] > 1).mean() < 0.05


def test_a_mirrored_or_turned_image_is_another_one(tmp_path):
    files = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for file, turn in zip(
        files, (None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180), strict=True
    ):
        image = draw_photo(0) if turn is None else draw_photo(0).transpose(turn)
        image.save(file)
    assert find_sets(files).tolist() == [0, 1, 2]


def test_images_of_one_colour_each_with_or_without_a_speck_are_no_near_duplicates(tmp_path):
    files = [tmp_path / f"{number}.png" for number in range(5)]
    colours = [(0, 0, 0), (255, 255, 255), (200, 30, 30), (200, 31, 30), (30, 30, 200)]
    for file, colour in zip(files, colours, strict=True):
        Image.new("RGB", (40, 40), colour).save(file)
    assert find_sets(files).tolist() == [0, 1, 2, 3, 4]
    speck = np.random.default_rng(0).integers(-1, 2, 432)
    assert find_sets_of_vectors([level + speck for level in (40, 80, 120, 160)]).tolist() == [
        0,
        1,
        2,
        3,
    ]


def test_equal_content_is_one_set_whatever_the_looks():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 432))
    pixels[4] = pixels[1]
    assert find_sets_of_vectors(pixels, [7, 8, 7, 9, 8]).tolist() == [0, 1, 0, 3, 1]
    plain = np.full((3, 432), 80)
    assert find_sets_of_vectors(plain, [5, 6, 5]).tolist() == [0, 1, 0]
    to_the_last_bit = [2**63 + 1, 2**63, 2**63 + 1]
    assert find_sets_of_vectors(plain, to_the_last_bit).tolist() == [0, 1, 0]
    assert find_sets_of_vectors(plain[:2], [3, 3]).tolist() == [0, 0]
    for count in (0, 1):
        assert find_sets_of_vectors(plain[:count]).tolist() == list(range(count))


def test_likeness_is_passed_on():
    """If a ~ b and b ~ c, all three are one set, even if a and c alone would not be."""
    random = np.random.default_rng(0)
    base, change = random.normal(0, 40, (2, 432))
    steps = [128 + base + share * change for share in (0, 0.16, 0.32)]
    assert np.corrcoef(steps[0], steps[2])[0, 1] < 0.97
    assert find_sets_of_vectors(np.clip(steps, 0, 255)).tolist() == [0, 0, 0]


def test_progress_ends_with_all_images():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 432)).astype(np.uint8)
    thumbs = pd.Series([one.tobytes() for one in pixels])
    steps, _ = drain(
        find_near_duplicates(thumbs, np.arange(9, dtype=np.uint64), make_squares(thumbs))
    )
    assert steps[-1] == Step(9, 9)


def test_sets_do_not_depend_on_the_order_of_the_images(distinct):
    files = distinct[:120]
    order = np.random.default_rng(0).permutation(len(files))
    straight, shuffled = find_sets(files), find_sets([files[number] for number in order])
    assert np.array_equal(
        (straight[:, None] == straight)[np.ix_(order, order)], shuffled[:, None] == shuffled
    )


def make_alike(random, count, noise):
    """Return thumbnails of one scene, with noise."""
    scene = random.integers(40, 216, 432)
    return np.clip(scene + random.normal(0, noise, (count, 432)), 0, 255)


def make_unlike(count=60):
    return np.random.default_rng(9).integers(0, 256, (count, 432))


def test_among_many_alike_images_only_copies_that_stand_out_are_near_duplicates():
    """Forty pictures of one scene look alike, but only five copies are nearly equal."""
    random = np.random.default_rng(0)
    scene = make_alike(random, 40, 5)
    pixels = [*scene, *(scene[:5] + random.normal(0, 0.7, (5, 432)))]
    assert np.corrcoef(pixels[0], pixels[1])[0, 1] > 0.985
    sets = find_sets_of_vectors(pixels)
    assert sets[40:].tolist() == [0, 1, 2, 3, 4]
    assert len(set(sets)) == 40


def test_one_large_set_leaves_the_others_as_they_are():
    pixels = [
        *make_alike(np.random.default_rng(0), 40, 5),
        *make_alike(np.random.default_rng(1), 3, 5),
    ]
    assert find_sets_of_vectors(pixels)[40:].tolist() == [40, 40, 40]


def test_few_moments_of_a_scene_are_near_duplicates_unless_there_is_nothing_else():
    scenes = [
        *make_alike(np.random.default_rng(0), 15, 5),
        *make_alike(np.random.default_rng(1), 15, 5),
    ]
    assert find_sets_of_vectors([*scenes, *make_unlike()])[:30].tolist() == [0] * 15 + [15] * 15
    assert len(set(find_sets_of_vectors(scenes))) == 30


@pytest.mark.parametrize("noise", [1, 5, 13])
@pytest.mark.parametrize(
    ("whole", "most", "tile"),
    [
        (2000, duplicates._MOST_PAIRS, duplicates._TILE),
        (0, duplicates._MOST_PAIRS, (20, 7)),
        (0, 200, (7, 20)),
        (2000, 200, (7, 20)),
    ],
)
def test_few_dimensions_and_few_pairs_at_a_time_lose_no_set(monkeypatch, whole, most, tile, noise):
    """The result is compared with all products of all vectors."""
    monkeypatch.setattr(duplicates, "_COMPARED_WHOLE", whole)
    monkeypatch.setattr(duplicates, "_MOST_PAIRS", most)
    monkeypatch.setattr(duplicates, "_TILE", tile)
    random = np.random.default_rng(noise)
    scenes = [make_alike(random, count, noise) for count in (30, 25, 6, 6, 2)]
    pixels = np.concatenate(
        [*scenes, make_alike(random, 5, 2 * noise), random.integers(0, 256, (40, 432))]
    )
    vectors, _ = duplicates._normalize(pixels.astype(np.uint8))
    products = np.triu(vectors @ vectors.T, 1)
    pairs = np.argwhere(products >= 0.985)
    keep = partial(duplicates._ConnectingPairs, len(vectors))
    found, _ = drain(
        duplicates._find_similar_pairs(vectors.__getitem__, np.arange(len(vectors)), 0.985, keep)
    )[1]
    assert np.array_equal(
        duplicates._label_components(found, len(vectors)),
        duplicates._label_components(pairs, len(vectors)),
    )


@pytest.mark.parametrize("tile", [duplicates._TILE, (7, 20), (20, 7)])
def test_all_pairs_that_are_close_are_found_in_order_with_their_products(monkeypatch, tile):
    monkeypatch.setattr(duplicates, "_TILE", tile)
    monkeypatch.setattr(duplicates, "_COMPARED_WHOLE", 0)
    pixels = np.concatenate([make_alike(np.random.default_rng(seed), 20, 5) for seed in range(4)])
    vectors, _ = duplicates._normalize(pixels.astype(np.uint8))
    rows = np.arange(len(vectors))[1::2]
    products = np.triu(vectors @ vectors.T, 1)
    expected = np.array(
        [
            (left, right)
            for left, right in np.argwhere(products >= 0.98)
            if left in rows and right in rows
        ]
    )
    assert 100 < len(expected) < len(rows) * (len(rows) - 1) / 2
    pairs, likeness = drain(
        duplicates._find_similar_pairs(vectors.__getitem__, rows, 0.98, duplicates._ClosestPairs)
    )[1]
    assert np.array_equal(pairs, expected)
    assert np.allclose(likeness, products[tuple(expected.T)], atol=1e-6)


def test_the_short_vectors_never_say_less_than_the_whole_ones():
    random = np.random.default_rng(0)
    pixels = np.concatenate([make_alike(random, 100, noise) for noise in (2, 8, 30, 100)])
    vectors, _ = duplicates._normalize(pixels.astype(np.uint8))
    short = duplicates._project(vectors.__getitem__, np.arange(400))
    assert short.shape == (400, 32)
    assert (short @ short.T >= vectors @ vectors.T - 1e-4).all()


@pytest.mark.fuzz
def test_images_of_a_fixed_camera_need_no_memory_for_all_their_pairs(monkeypatch):
    """All pairs of 1,500 images are alike. Two vectors per pair would take 4 GB."""
    monkeypatch.setattr(duplicates, "_MOST_PAIRS", 100_000)
    einsum, connected, multiplied, kept = np.einsum, duplicates._label_components, [0], []
    monkeypatch.setattr(
        np, "einsum", lambda *given: multiplied.append(len(given[1])) or einsum(*given)
    )
    monkeypatch.setattr(
        duplicates,
        "_label_components",
        lambda *given: kept.append(len(given[0])) or connected(*given),
    )
    sets = find_sets_of_vectors(make_alike(np.random.default_rng(0), 1500, 1.5))
    assert len(set(sets)) == 1500  # and none is called a copy: the split may part them
    assert max(multiplied) < 100_000
    assert kept[-2] < 100_000


def test_what_is_connected_already_is_not_compared_again(monkeypatch):
    monkeypatch.setattr(duplicates, "_TILE", (10, 10))
    products, pixels = (
        duplicates._select_pairs,
        make_alike(np.random.default_rng(0), 1000, 1.5).astype(np.uint8),
    )
    vectors, _ = duplicates._normalize(pixels)
    compared = []
    monkeypatch.setattr(
        duplicates, "_select_pairs", lambda *given: compared.append(1) or products(*given)
    )
    keep = partial(duplicates._ConnectingPairs, len(vectors))
    pairs, _ = drain(
        duplicates._find_similar_pairs(vectors.__getitem__, np.arange(1000), 0.985, keep)
    )[1]
    assert len(set(duplicates._label_components(pairs, 1000))) == 1
    assert len(compared) < 100 * 100 / 2 * 0.9  # tiles; those that threads have begun are compared


def test_more_images_than_can_be_compared_keep_their_exact_copies(monkeypatch):
    monkeypatch.setattr(duplicates, "MOST_COMPARED", 3)
    pixels = make_alike(np.random.default_rng(0), 5, 1)
    assert find_sets_of_vectors(pixels, [1, 2, 3, 4, 1]).tolist() == [0, 1, 2, 3, 0]


def test_more_that_look_alike_than_can_be_compared_are_left_and_the_others_compared(monkeypatch):
    monkeypatch.setattr(duplicates, "_MOST_ALIKE", 4)
    pixels = [
        *make_alike(np.random.default_rng(0), 5, 1),
        *make_alike(np.random.default_rng(1), 3, 1),
        *make_unlike(),
    ]
    assert find_sets_of_vectors(pixels)[:8].tolist() == [0, 1, 2, 3, 4, 5, 5, 5]


def test_united_rows_share_a_value_in_any_column():
    one = np.array([0, 0, 1, 2, 3, -1, -1])
    two = np.array([5, 6, 7, 7, 8, 9, -1])
    assert merge_groups(one, two).tolist() == [0, 0, 2, 2, 4, 5, 6]
    assert merge_groups(two, one).tolist() == [0, 0, 2, 2, 4, 5, 6]
    assert merge_groups(np.array([0, 0, 1, 1]), np.array([5, 6, 6, 7])).tolist() == [0, 0, 0, 0]
    assert merge_groups(np.full(4, -1)).tolist() == [0, 1, 2, 3]  # what has no value
    assert merge_groups(np.array([], dtype=int)).tolist() == []
