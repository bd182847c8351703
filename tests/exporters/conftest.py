"""Runs to export, and an interpreter that cannot import Thaw."""

import os
import re
import runpy
import subprocess
import sys

import pytest
import torch

from finetune_core.config import Edit
from finetune_core.exporters.formats import export_run
from finetune_core.runs.store import read_run
from tests.factories import copy_run, shared_images, tiny_config, trained_run

# A run and its script may differ in the last digits, which Adam turns into whole steps.
SGD = {"optimizer": "sgd", "learning_rate": 0.02, "batch_size": 8, "val_fraction": 0.25}


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Train on one thread, which is faster than several for networks this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def colours():
    """Return an image folder of three classes.

    One name has characters that are special in CSV and Markdown.
    """
    return shared_images(**{"red": 14, "blue": 14, 'a "b", |c|': 15})


def train_shared(**settings):
    """Train a run on ``colours()`` with SGD, once per session."""
    return trained_run(tiny_config(colours(), **SGD | settings))


@pytest.fixture(scope="session")
def run(home_of_shared_fixtures, tmp_path_factory):
    """A copy of a run of the tiny network, trained on edited images."""
    edits = (
        Edit(action="relabel", paths=("red/000.png",), to="blue"),
        Edit(action="exclude", paths=("red/001.png",)),
    )
    original = train_shared(edits=edits, seed=4)
    return read_run(copy_run(original.run_dir, tmp_path_factory.mktemp("runs")))


# Isolated mode finds installed packages, perhaps Thaw too, so its import is blocked by name.
WITHOUT_THAW = """
import runpy, sys
sys.modules["finetune_core"] = None
sys.argv = sys.argv[1:]
if sys.argv[0] == "-c":
    code = sys.argv.pop(1)
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
else:
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="session")
def run_without_thaw(tmp_path_factory):
    """A function that runs Python code or a script that cannot import Thaw."""
    folder = tmp_path_factory.mktemp("elsewhere")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def python(*arguments):
        done = subprocess.run(
            [sys.executable, "-I", "-c", WITHOUT_THAW, *map(str, arguments)],
            cwd=folder,
            env=environment | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    for attempt in ("import finetune_core.config", "from finetune_core import api"):
        code = f"try:\n    {attempt}\nexcept ModuleNotFoundError:\n    print('absent')"
        assert python("-c", code) == "absent\n"
    return python


def parse_metrics(text):
    """Return losses and accuracy of each epoch, and the test accuracy, from printed text."""
    line = r"epoch \d+: loss ([\d.]+), validation loss ([\d.]+), accuracy ([\d.]+)"
    epochs = [tuple(map(float, row)) for row in re.findall(line, text)]
    return epochs, float(re.search(r"test accuracy ([\d.]+)", text)[1])


def check_same(result, run):
    names = ("train_loss", "val_loss", "val_accuracy")
    expected = [tuple(row[name] for name in names) for row in run.history.epochs]
    for ours, theirs in zip(result, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3, abs=2e-4)


def check_style(file):
    for command in (
        ["check", "--select", "E4,E7,E9,F,B,RUF100"],
        ["format", "--check", "--line-length", "128"],
    ):
        ruff = [sys.executable, "-m", "ruff", *command, "--isolated", file]
        done = subprocess.run(ruff, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.fixture
def repeat(tmp_path, monkeypatch, capsys):
    """A function that exports and runs a run's script, and compares its metrics with the run's.

    It returns the script's path, its namespace, and the accuracies of evaluations that it printed.
    """

    def check(run, data=None):
        file = export_run(run, "script", tmp_path / "script").folder / "train.py"
        arguments = ["train.py", str(data or colours()), "--out", str(tmp_path / "model.pt")]
        monkeypatch.setattr(sys, "argv", arguments)
        names = runpy.run_path(str(file), run_name="__main__")
        text = capsys.readouterr().out
        output, tested = parse_metrics(text)
        if run.config.precision != "bf16":
            check_same(output, run)
            assert tested == pytest.approx(run.history.end["test_accuracy"], abs=0.01)
        check_style(file)
        return file, names, re.findall(r"(?:validation|test) accuracy ([\d.]+)", text)

    return check
