"""Each benchmark runs as documents write it: from the checkout, with nothing installed but the requirements, with the options they give."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import plain_loop, speed
from finetune_core.config import make_config
from finetune_core.models.network import network_stages
from finetune_core.training.stage_plan import plan, trained_parameters
from tests.test_documents import DOCUMENTS

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [file for file in sorted(ROOT.glob("benchmarks/*.py")) if '__name__ == "__main__"' in file.read_text()]
TEXTS = [file.read_text() for file in (*DOCUMENTS, *ROOT.glob("benchmarks/*.py"))]
COMMANDS = [command for text in TEXTS for command in re.findall(r"^ *(python .*benchmarks.*)$", text, re.M)]


def test_documents_name_benchmarks_that_exist_in_one_form():
    named = [re.match(r"python -m benchmarks\.(\w+)", command) for command in COMMANDS]
    assert all(named), COMMANDS
    assert {name[1] for name in named} == {file.stem for file in SCRIPTS}


@pytest.mark.slow
@pytest.mark.parametrize("name", [file.stem for file in SCRIPTS])
def test_it_says_what_it_measures_and_which_options_it_takes(name):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")
    used = {option for line in COMMANDS if f"benchmarks.{name} " in line for option in re.findall(r"--[\w-]+", line)}
    # The options as argparse lists them, which follow the description that quotes the command.
    listed = set(re.findall(r"--[\w-]+", done.stdout.rpartition("options:")[2]))
    assert used <= listed


@pytest.mark.parametrize("strategy", plain_loop.TRAINED["resnet18"])
@pytest.mark.parametrize("network", plain_loop.TRAINED)
def test_the_plain_loop_trains_what_thaw_trains(network, strategy):
    with torch.device("meta"):
        model = plain_loop.build(network, strategy, 4)
    stages = network_stages(network, 4)
    planned = plan(make_config({"data": "none", "backbone": network, "strategy": strategy}), stages)
    ours = {name for one, stage in zip(planned, stages, strict=True) for name in trained_parameters(one, stage)}
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == ours


def test_a_side_that_ran_few_epochs_is_counted_up_to_all_of_them():
    assert speed.all_epochs([10.0, 14.0, 18.0], 10) == 10 + 9 * 4
    assert speed.all_epochs([10.0], 3) == 30
    assert speed.all_epochs([10.0, 14.0], 2) == 14


def test_rounds_are_summed_up_by_their_own_ratios():
    rounds = [(300.0, 10.0), (100.0, 5.0), (640.0, 16.0)]
    line = speed.summary("resnet18", "feature_extraction", speed.PLAIN, rounds, (2000, 650))
    assert "30.00 times as fast as plain loop: 10.0 s against 300.0 s (20.00 to 40.00 in 3 rounds; 32 wanted)" in line
    assert "45 wanted" in speed.summary("resnet18", "feature_extraction", speed.PLAIN, rounds, (10000, 1500))
    for network, side, size in [
        ("resnet18", speed.PLAIN, (100, 50)),
        ("efficientnet_lite0", speed.PLAIN, (2000, 650)),
        ("resnet18", "fastai", (2000, 650)),
    ]:
        assert "wanted" not in speed.summary(network, "feature_extraction", side, rounds, size)
    line = speed.summary("resnet18", "comparison", speed.PLAIN, [(100.0, 90.0)], (2000, 650))
    assert "0.90 times the time of one last_block of plain loop" in line
    assert "at most 1 wanted" in line


@pytest.mark.slow
def test_the_sides_alternate_and_train_the_same(tmp_path):
    small = ["--train", "12", "--val", "4", "--epochs", "2", "--plain-epochs", "1", "--rounds", "2"]
    command = [sys.executable, "-m", "benchmarks.speed", *small, "--networks", "efficientnet_lite0", "--jobs", "last_block"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    first, one, second, two, summed = done.stdout.splitlines()
    assert (first, second) == ("round 1", "round 2")
    assert all("1,022,724 parameters train" in line for line in (one, two))
    assert summed.startswith("efficientnet_lite0, last_block: ")
