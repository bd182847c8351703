import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from finetune_core.data import sample
from finetune_core.data.sample import write_digits_folder
from finetune_core.errors import DataError


@pytest.mark.train
def test_the_digits_are_written_once_as_an_image_folder(home):
    folder = write_digits_folder()
    assert folder == home / "data" / "digits"
    assert sorted(entry.name for entry in folder.iterdir()) == [str(digit) for digit in range(10)]
    files = sorted(folder.glob("*/*.png"), key=lambda file: file.name)
    digits = load_digits()
    assert [int(file.parent.name) for file in files] == digits.target.tolist()
    assert os.listdir(folder.parent) == ["digits"]  # nothing half-written beside it
    for number in (0, 1000):
        image = Image.open(files[number])
        assert image.size == (64, 64)
        small = np.asarray(image.resize((8, 8), Image.Resampling.BOX), float) * 16 / 255
        assert np.corrcoef(small.ravel(), digits.images[number].ravel())[0, 1] > 0.95
    files[0].unlink()
    assert write_digits_folder() == folder
    assert not files[0].exists()  # not written a second time


def test_a_failure_leaves_nothing_behind(home, monkeypatch):
    def fail(folder):
        Path(folder, "0").mkdir()
        raise OSError("disk full")

    monkeypatch.setattr(sample, "_write_digits", fail)
    with pytest.raises(DataError, match="disk full"):
        write_digits_folder()
    assert os.listdir(home / "data") == []


def test_another_process_that_was_first_wins(home, monkeypatch):
    def slow(folder):
        Path(folder, "mine").mkdir()
        (home / "data" / "digits" / "theirs").mkdir(parents=True)

    monkeypatch.setattr(sample, "_write_digits", slow)
    folder = write_digits_folder()
    assert os.listdir(folder) == ["theirs"]
    assert os.listdir(folder.parent) == ["digits"]
