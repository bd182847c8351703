"""Each benchmark runs as documents write it: from the checkout, with nothing installed but the requirements, with the options they give."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, peak, plain_loop, scale, speed
from finetune_core.config import make_config
from finetune_core.models.network import network_stages
from finetune_core.runs.store import RunStore
from finetune_core.training.device import choose_device
from finetune_core.training.stage_plan import plan, trained_parameters
from tests.forked import run_module
from tests.test_documents import DOCUMENTS

ROOT = Path(__file__).resolve().parent.parent
FILES = [*sorted(ROOT.glob("benchmarks/*.py")), *sorted(ROOT.glob("benchmarks/*/*.py"))]
SCRIPTS = [
    file.parent.name if file.stem == "__main__" else file.stem
    for file in FILES
    if '__name__ == "__main__"' in file.read_text()
]
TEXTS = [file.read_text() for file in (*DOCUMENTS, *FILES)]
COMMANDS = [
    command for text in TEXTS for command in re.findall(r"^ *(python .*benchmarks.*)$", text, re.M)
]


def test_documents_name_benchmarks_that_exist_in_one_form():
    named = [re.match(r"python -m benchmarks\.(\w+)", command) for command in COMMANDS]
    assert all(named), COMMANDS
    assert {name[1] for name in named} == set(SCRIPTS)


@pytest.mark.processes
@pytest.mark.parametrize("name", SCRIPTS)
def test_it_says_what_it_measures_and_which_options_it_takes(name, processes, tmp_path):
    done = run_module(processes, f"benchmarks.{name}", "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")
    used = {
        option
        for line in COMMANDS
        if f"benchmarks.{name} " in line
        for option in re.findall(r"--[\w-]+", line)
    }
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
    ours = {
        name
        for one, stage in zip(planned, stages, strict=True)
        for name in trained_parameters(one, stage)
    }
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == ours


def test_a_side_that_ran_few_epochs_is_counted_up_to_all_of_them():
    assert speed.all_epochs([10.0, 14.0, 18.0], 10) == 10 + 9 * 4
    assert speed.all_epochs([10.0], 3) == 30
    assert speed.all_epochs([10.0, 14.0], 2) == 14


def test_rounds_are_summed_up_by_their_own_ratios():
    rounds = [(300.0, 10.0), (100.0, 5.0), (640.0, 16.0)]
    line = speed.summary("resnet18", "feature_extraction", speed.PLAIN, rounds, (2000, 650))
    assert (
        "30.00 times as fast as plain loop: 10.0 s against 300.0 s (20.00 to 40.00 in 3 rounds; 32 wanted)"
        in line
    )
    assert "45 wanted" in speed.summary(
        "resnet18", "feature_extraction", speed.PLAIN, rounds, (10000, 1500)
    )
    for network, side, size in [
        ("resnet18", speed.PLAIN, (100, 50)),
        ("efficientnet_lite0", speed.PLAIN, (2000, 650)),
        ("resnet18", "fastai", (2000, 650)),
    ]:
        assert "wanted" not in speed.summary(network, "feature_extraction", side, rounds, size)
    line = speed.summary("resnet18", "comparison", speed.PLAIN, [(100.0, 90.0)], (2000, 650))
    assert "0.90 times the time of one last_block of plain loop" in line
    assert "at most 1 wanted" in line


@pytest.mark.processes
def test_the_sides_alternate_and_train_the_same(tmp_path):
    small = ["--train", "12", "--val", "4", "--epochs", "2", "--plain-epochs", "1", "--rounds", "2"]
    command = [
        sys.executable,
        "-m",
        "benchmarks.speed",
        *small,
        "--networks",
        "efficientnet_lite0",
        "--jobs",
        "last_block",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    first, one, second, two, summed = done.stdout.splitlines()
    assert (first, second) == ("round 1", "round 2")
    assert all("1,022,724 parameters train" in line for line in (one, two))
    assert summed.startswith("efficientnet_lite0, last_block: ")


def test_generated_runs_are_finished_runs_of_so_many_steps(tmp_path):
    scale.write_runs(tmp_path, 3, 16)
    runs = RunStore(tmp_path).runs()
    assert [(run.status, run.notices, run.config.seed) for run in runs] == [
        ("finished", (), seed) for seed in (2, 1, 0)
    ]
    assert [len(run.history.steps) for run in runs] == [16] * 3
    assert [len(run.history.epochs) for run in runs] == [8] * 3


@pytest.mark.processes
@pytest.mark.parametrize(
    ("name", "options", "spans"),
    [
        (
            "scale",
            "--runs 3 --steps 16",
            ["list", "list_again", "page_runs_again", "page_train_again"],
        ),
        (
            "scale",
            "--images 200",
            [
                "index",
                "split_and_check",
                "page_findings_again",
                "edits_applied",
                "edit_taken_back",
                "rows_read_at_random",
            ],
        ),
    ],
)
def test_growth_is_measured_part_by_part(name, options, spans):
    command = [sys.executable, "-m", f"benchmarks.{name}", *options.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    found = {
        span: value
        for part in json.loads(line).values()
        if isinstance(part, dict)
        for span, value in part.items()
    }
    for span in spans:
        assert found[span]["peak_mb"] >= found["base_mb"] > 0


@pytest.mark.parametrize("strategy", ["feature_extraction", "full"])
def test_a_tail_is_a_step_on_what_its_trunk_yields(strategy):
    tail = peak.tail_of("resnet18", strategy, choose_device("cpu", "fp32"), 2, 64)
    assert tail.inputs.shape == {"feature_extraction": (2, 512), "full": (2, 3, 64, 64)}[strategy]
    assert tail.parameters == {"feature_extraction": 5130, "full": 11_181_642}[strategy]
    head = 2 * 2 * 512 * peak.CLASSES
    assert tail.flops == 2 * head if strategy == "feature_extraction" else tail.flops > 1e8
    taken = gpu.step_seconds("resnet18", strategy, tail, 2, 64, torch.device("cpu"))
    assert set(taken) == {gpu.PLAIN, gpu.AUTOCAST, gpu.THAW}


def test_the_least_that_a_heads_epoch_moves():
    tail = peak.Tail(lambda: None, 0, torch.zeros(4, 512, dtype=torch.bfloat16), 1000)
    assert gpu.least_seconds(tail, 10, 4, 1e6) == pytest.approx(
        (10 * 512 * 2 + 3 * 8 * 4 * 1000) / 1e6
    )


def test_without_a_gpu_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit, match=r"^Nothing was measured: .*no cuda here.*$") as ended:
        gpu.main()
    assert "\n" not in str(ended.value)


def test_a_network_that_takes_one_size_only_gets_it():
    assert (gpu.fitting_size("resnet18", 64), gpu.fitting_size("vit_b_16", 64)) == (64, 224)


@pytest.mark.processes
def test_the_gpu_benchmark_works_on_a_processor():
    small = (
        "--device cpu --no-suite --networks resnet18 --strategies last_block --workers 0 --side 128 --copied 8 "
        "--train 4 --val 4 --batch 2 --epochs 1 --plain-epochs 1 --rounds 1 --image-size 64"
    )
    command = [sys.executable, "-m", "benchmarks.gpu", *small.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    *_, header, _, resnet = done.stdout.splitlines()
    assert header.count("|") == resnet.count("|") == 7
    assert resnet.startswith("| ResNet-18, last block | ")
    assert "Tests: not run." in done.stdout


@pytest.mark.processes
def test_the_suite_is_reported():
    words, passed = gpu.suite(["-n0", "tests/test_formatting.py"])
    assert passed
    assert re.fullmatch(r"\d+ passed in .*s", words)
    assert not gpu.suite(["-n0", "tests/test_formatting.py", "-k", "nothing_has_this_name"])[1]
