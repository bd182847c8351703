"""The book of speeds is read as input: what is damaged, or no file at all, is an empty book."""

import json
import os

import pytest

from finetune_core import paths
from finetune_core.training.speed_book import Compilation, SpeedBook


def endless(file):
    file.symlink_to("/dev/zero")


def holding(content):
    return lambda file: file.write_text(content)


@pytest.mark.skipif(os.name != "posix", reason="files that only POSIX has")
@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        endless,
        os.mkdir,
        holding("[" * 100_000),
        holding("[]"),
        holding(json.dumps({"compilations": {"a": {"seconds": 10**400, "saved": 1}}})),
        holding(json.dumps({"compilations": {"a": {"seconds": "1", "saved": 1}, "b": 3}})),
        holding(json.dumps({"compilations": {"a": {"seconds": True, "saved": [1]}}})),
    ],
)
def test_what_is_no_book_is_an_empty_one(make):
    make(paths.home() / "speeds.json")
    assert SpeedBook().compilation("a") == Compilation(seconds=40.0, saved=0.3)
