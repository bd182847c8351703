"""One small trained run that the tests of this folder share, and an interpreter that knows nothing of Thaw."""

import os
import subprocess
import sys

import pytest
import torch

from finetune_core.config import Edit, make_config
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.store import RunStore

# SGD, because Adam makes whole steps of the last digits, in which the run and its script may differ.
TINY = {
    "image_size": 32,
    "epochs": 2,
    "batch_size": 8,
    "optimizer": "sgd",
    "learning_rate": 0.02,
    "precision": "fp32",
}
TINY |= {"val_fraction": 0.25}


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Networks this small train faster on one thread than on threads that wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(folder, runs, **settings):
    reservation = create_run(make_config(TINY | {"data": str(folder)} | settings), runs)
    list(execute(reservation))
    return RunStore(runs).run(reservation.run_dir.name)


@pytest.fixture(scope="session")
def colours(image_folder_once, tmp_path_factory):
    """Images of three classes, one of them with a name that means something to CSV and Markdown."""
    return image_folder_once(
        tmp_path_factory.mktemp("colours") / "colours", {"red": 14, "blue": 14, 'a "b", |c|': 15}
    )


@pytest.fixture(scope="session")
def run(home_of_shared_fixtures, colours, tmp_path_factory):
    edits = (
        Edit(action="relabel", paths=("red/000.png",), to="blue"),
        Edit(action="exclude", paths=("red/001.png",)),
    )
    return trained(colours, tmp_path_factory.mktemp("runs"), edits=edits, seed=4)


@pytest.fixture(scope="session")
def train():
    return trained


# Isolated mode still finds what is installed, Thaw perhaps included: so its import is blocked by name.
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
def elsewhere(tmp_path_factory):
    """Runs Python code or a script in isolated mode, in another folder, where Thaw cannot be imported; returns its output."""
    folder = tmp_path_factory.mktemp("elsewhere")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "OMP_NUM_THREADS": "1"
    }

    def python(*arguments):
        command = [sys.executable, "-I", "-c", WITHOUT_THAW, *map(str, arguments)]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    attempts = (
        "import finetune_core",
        "import finetune_core.config",
        "from finetune_core import api",
    )
    for attempt in attempts:
        assert (
            python("-c", f"try:\n    {attempt}\nexcept ModuleNotFoundError:\n    print('absent')")
            == "absent\n"
        )
    return python
