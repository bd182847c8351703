"""Tests of images that vanish or rot during a run: they are left out, and too many end it."""

from pathlib import Path

import pytest

from finetune_core.errors import TrainingError
from finetune_core.training import events
from finetune_core.training.loop import fit
from tests.factories import HUES, image_folder, tiny_config
from tests.training.fits import ends_epoch, fit_until, only


@pytest.fixture
def config(monkeypatch, tmp_path):
    """Make configs of runs that read every image, of a folder of their own, in every epoch."""
    monkeypatch.setenv("THAW_CACHE_MEMORY_GB", "0")
    monkeypatch.setenv("THAW_CACHE_DISK_GB", "0")
    images = image_folder(tmp_path / "images", dict.fromkeys(HUES, 14))
    return lambda **settings: tiny_config(images, **settings)


def images_of(config):
    return sorted(Path(config.data).rglob("*.png"))


@pytest.mark.train
def test_an_image_that_vanishes_is_named_counted_and_left_out(config, tmp_path):
    settings = config(skip_limit=0.2)
    _, training = fit_until(settings, tmp_path / "run", ends_epoch())
    files = images_of(settings)
    files[0].unlink()
    files[20].write_bytes(b"rotten")
    rest = list(training)
    lost = only(events.ImagesLost, rest)
    assert lost[-1].count == 2
    assert any(files[0].name in words for words in lost[-1].examples)
    assert isinstance(rest[-1], events.RunFinished)
    assert len(lost) <= 2


@pytest.mark.train
def test_too_many_end_the_run_with_advice_and_it_resumes_once_they_are_back(config, tmp_path):
    settings = config()
    _, training = fit_until(settings, tmp_path / "run", ends_epoch())
    kept = {file: file.read_bytes() for file in images_of(settings)[:14]}
    for file in kept:
        file.unlink()
    said = r"can no longer be read, more than 2.0 %.*\. Put them back"
    with pytest.raises(TrainingError, match=said):
        list(training)
    for file, content in kept.items():
        file.write_bytes(content)
    assert isinstance(list(fit(settings, tmp_path / "run", resume=True))[-1], events.RunFinished)


@pytest.mark.train
def test_nothing_left_to_train_on_is_said(config, tmp_path):
    settings = config(skip_limit=1.0)
    _, training = fit_until(settings, tmp_path / "run", ends_epoch())
    for file in images_of(settings):
        file.unlink()
    with pytest.raises(TrainingError, match="None of the training images can be read"):
        list(training)
