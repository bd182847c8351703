"""Images that vanish or rot while a run goes on: named, left out, counted; too many end the run, and it can go on later."""

from pathlib import Path

import pytest

from finetune_core.errors import TrainingError
from finetune_core.training import events
from finetune_core.training.loop import fit


@pytest.fixture
def uncached(monkeypatch, colour_config):
    """Configs of runs that read every image in every epoch."""
    monkeypatch.setenv("THAW_CACHE_MEMORY_GB", "0")
    monkeypatch.setenv("THAW_CACHE_DISK_GB", "0")
    return lambda **settings: colour_config(batch_size=10, epochs=3, **settings)


def images_of(config):
    return sorted(Path(config.data).rglob("*.png"))


def run_until_epoch(config, folder):
    folder.mkdir(exist_ok=True)
    stream = fit(config, folder)
    for event in stream:
        if isinstance(event, events.EpochEnded):
            return stream, event
    raise AssertionError("no epoch ended")


def test_an_image_that_vanishes_is_named_counted_and_left_out(uncached, tmp_path):
    config = uncached(skip_limit=0.2)
    stream, _ = run_until_epoch(config, tmp_path / "run")
    files = images_of(config)
    files[0].unlink()
    files[20].write_bytes(b"rotten")
    rest = list(stream)
    lost = [event for event in rest if isinstance(event, events.ImagesLost)]
    assert lost[-1].count == 2
    assert any(files[0].name in words for words in lost[-1].examples)
    assert isinstance(rest[-1], events.RunFinished)
    assert sum(isinstance(event, events.ImagesLost) for event in rest) <= 2


def test_more_than_the_set_share_ends_the_run_with_what_to_do_and_it_resumes_once_they_are_back(
    uncached, tmp_path
):
    config = uncached()
    stream, _ = run_until_epoch(config, tmp_path / "run")
    files = images_of(config)
    kept = {file: file.read_bytes() for file in files[:14]}
    for file in kept:
        file.unlink()
    with pytest.raises(
        TrainingError, match=r"can no longer be read, more than 2.0 %.*\. Put them back"
    ):
        list(stream)
    for file, content in kept.items():
        file.write_bytes(content)
    assert isinstance(list(fit(config, tmp_path / "run", resume=True))[-1], events.RunFinished)


def test_nothing_left_to_train_on_is_said(uncached, tmp_path):
    config = uncached(skip_limit=1.0)
    stream, _ = run_until_epoch(config, tmp_path / "run")
    for file in images_of(config):
        file.unlink()
    with pytest.raises(TrainingError, match="None of the training images can be read"):
        list(stream)
