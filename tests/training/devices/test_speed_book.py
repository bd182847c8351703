"""Tests that the book of speeds is read as input: a damaged or missing file is an empty book."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from finetune_core.config import make_config
from finetune_core.data.dataset import load_dataset
from finetune_core.training.devices.speed_book import Compilation, Speed, SpeedBook
from tests.factories import shared_images

SPEED = Speed(0.01, 0.02, 0.005, 1000, 5_000_000, 0.0)
CONFIG = make_config({"data": "x"})


@pytest.fixture
def file(home):
    return home / "speeds.json"


@pytest.mark.skipif(os.name != "posix", reason="files that only POSIX has")
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda file: file.symlink_to("/dev/zero")])
def test_what_is_no_file_is_an_empty_book(file, make):
    make(file)
    assert SpeedBook().get_compilation("a") == Compilation(seconds=40.0, saved=0.3)


@pytest.mark.parametrize(
    "content",
    [
        "{broken",
        "[]",
        "[" * 100_000,
        '{"speeds": []}',
        '{"speeds": {}, "decode": 3}',
        json.dumps({"compilations": {"a": {"seconds": 10**400, "saved": 1}}}),
        json.dumps({"compilations": {"a": {"seconds": "1", "saved": 1}, "b": 3}}),
        json.dumps({"compilations": {"a": {"seconds": True, "saved": [1]}}}),
    ],
)
def test_a_damaged_book_is_begun_again(file, content):
    file.write_text(content)
    assert SpeedBook().get_speed(CONFIG) is None
    assert SpeedBook().get_compilation("a") == Compilation(seconds=40.0, saved=0.3)
    SpeedBook().learn(CONFIG, SPEED)
    assert SpeedBook().get_speed(CONFIG) == SPEED


@pytest.mark.parametrize("seconds", ["NaN", "1" + "0" * 400, '"fast"'])
def test_a_decoding_time_that_is_no_number_counts_as_not_measured(file, seconds):
    dataset = load_dataset(shared_images())
    SpeedBook().learn_decoding(dataset.fingerprint, 32, 0.125)
    assert SpeedBook().get_decode_seconds(dataset, 32) == 0.125
    file.write_text(file.read_text().replace("0.125", seconds))
    assert SpeedBook().get_decode_seconds(dataset, 32) is None


def test_speeds_of_another_version_are_measured_again(file):
    SpeedBook().learn(CONFIG, SPEED)
    file.write_text(file.read_text().replace('"trunk"', '"before"'))
    assert SpeedBook().get_speed(CONFIG) is None


def test_what_several_learn_at_once_is_all_kept(file):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda side: SpeedBook().learn_decoding("images", side, 0.001), range(40)))
    known = json.loads(file.read_text())["decode"]
    assert set(known) == {f"images-{side}" for side in range(40)}
