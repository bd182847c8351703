"""Images of one camera, which all look alike.

Copies among them are found, and different parts are not taken for copies.
"""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from benchmarks.near_duplicates import (
    LINES,
    Camera,
    encode_image,
    find_near_pairs,
    plant_copies,
    write_parts,
)
from finetune_core.data.closeness import ChancePairs, fit_chance_pairs, is_same_image
from finetune_core.data.dataset import load_dataset

SIZE = (240, 180)
MOVING = ["parts laid by hand", "parts in a fixture"]


@pytest.mark.train
@pytest.mark.parametrize(
    "line",
    [pytest.param(line, marks=() if line in MOVING else pytest.mark.exhaustive) for line in LINES],
)
def test_different_parts_are_no_near_duplicates(tmp_path, line):
    write_parts(tmp_path / "parts", LINES[line], 70, 0, SIZE)
    dataset = load_dataset(tmp_path / "parts")
    assert not {one.kind for one in dataset.findings} & {"near_duplicates", "near_leakage"}
    # each by itself: the split is the one that was asked for
    assert dataset.table["near"].nunique() == 70
    assert dataset.count_images().sum().tolist() == [50, 10, 10]


@pytest.mark.train
@pytest.mark.parametrize("line", MOVING[:1])
def test_copies_among_parts_are_found_and_no_others(tmp_path, line):
    write_parts(tmp_path / "images", LINES[line], 70, 1, SIZE)
    truth = {frozenset(pair) for pair in plant_copies(tmp_path / "images", 8, 1).items()}
    found = find_near_pairs(tmp_path / "images")
    assert len(found & truth) >= 7
    assert len(found - truth) <= 1


def picture(seed):
    return Camera(LINES["parts laid by hand"], seed).picture(defect=False)


def scratch(image):
    image = image.copy()
    ImageDraw.Draw(image).line((150, 70, 162, 78), fill=(90, 90, 90), width=3)
    return image


@pytest.mark.train
def test_a_small_scratch_makes_it_another_part(tmp_path):
    """All other pictures differ from both, so only the scratch can tell them apart."""
    (tmp_path / "part").mkdir()
    for number in range(30):
        blocks = Image.fromarray(np.random.default_rng(number).integers(0, 256, (6, 8), np.uint8))
        blocks.resize((320, 240)).save(tmp_path / "part" / f"other{number}.png")
    for number in range(2):
        picture(number).save(tmp_path / "part" / f"{number}.png")
    (tmp_path / "part" / "0-copy.jpg").write_bytes(encode_image(picture(0), quality=60))
    scratch(picture(1)).save(tmp_path / "part" / "1-scratched.png")
    assert find_near_pairs(tmp_path) == {frozenset(("part/0.png", "part/0-copy.jpg"))}


def gray(image):
    return np.asarray(image.convert("L").resize((128, 128), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("seed", range(2))
def test_noise_is_spread_and_a_scratch_is_a_peak(seed):
    random, image = np.random.default_rng(seed), picture(seed)
    noisy = [
        np.uint8(np.clip(gray(image) + random.normal(0, 3, (128, 128)), 0, 255)) for _ in range(2)
    ]
    assert is_same_image(*noisy)
    other = np.uint8(np.clip(gray(scratch(image)) + random.normal(0, 3, (128, 128)), 0, 255))
    assert not is_same_image(noisy[0], other)


def unit(points):
    points = points - points.mean(axis=1, keepdims=True)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


@pytest.mark.parametrize("dimension", [2, 5])
def test_pairs_by_chance_are_as_many_as_expected(dimension):
    random = np.random.default_rng(dimension)
    base, ways = random.normal(size=64), random.normal(size=(dimension, 64)) * 0.3
    vectors = unit(base + random.uniform(-1, 1, (1200, dimension)) @ ways)
    chance = fit_chance_pairs(vectors)
    assert chance.dimension == pytest.approx(dimension, rel=0.2)
    apart = np.sqrt(
        np.maximum(0, 2 - 2 * np.triu(vectors @ vectors.T, 1)[np.triu_indices(1200, 1)])
    )
    closest = np.sort(apart)[300]
    assert 100 < chance.expected_pairs(np.array([closest]))[0] < 900
    assert not chance.is_closer_than_chance(np.sort(apart)[:1000]).any()


def test_what_is_far_closer_than_chance_stands_out():
    chance = ChancePairs(images=100, neighbours=20, radius=np.full(100, 0.1), dimension=5.0)
    apart = np.array([0.09, 0.001, 0.08, 0.002])
    assert chance.is_closer_than_chance(apart).tolist() == [False, True, False, True]
    assert 0.002 < chance.max_copy_distance() < 0.08
