"""Names, files and outputs that nobody would choose: the command line says what is wrong, ends with the right status, and never waits."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from finetune_core.__main__ import app
from tests.deadline import in_time


def thaw(*arguments):
    """What the command line says, in time and in good order."""
    with in_time(arguments[0]):
        done = CliRunner().invoke(app, [*map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture(scope="module")
def trained(image_folder_once, tmp_path_factory):
    """(data, folder of the run) of one small run that the tests of this file share."""
    base = tmp_path_factory.mktemp("hostile")
    data = image_folder_once(base / "images", {"red": 8, "blue": 8})
    settings = ["--epochs", 1, "--image-size", 32, "--batch-size", 8, "--strategy", "feature_extraction", "--precision", "fp32"]
    done = thaw("train", data, *settings, "--runs-dir", base / "runs", "--json")
    assert done.exit_code == 0, done.stderr
    return data, Path(json.loads(done.stdout)["run_dir"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs in folders here")
def test_a_fifo_among_images_is_skipped_and_the_rest_is_named(trained, tmp_path):
    data, run_dir = trained
    os.mkfifo(tmp_path / "fifo.png")
    done = thaw("predict", run_dir, tmp_path / "fifo.png", data / "red" / "000.png", "--json")
    told = json.loads(done.stdout)
    assert (done.exit_code, len(told["predictions"]), len(told["skipped"])) == (2, 1, 1)
    assert "FIFO" in done.stderr
