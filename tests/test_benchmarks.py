"""Each benchmark runs as the documents say: from the checkout, with the given options."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import gpu, planted, scale, speed
from finetune_core.runs.store import RunStore
from finetune_core.training.predictions import load_predictions
from tests.factories import tiny_config, train, trained_run
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


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_has_the_options_that_documents_use(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
    printed = capsys.readouterr().out
    assert printed.startswith("usage:")
    lines = [line for line in COMMANDS if f"benchmarks.{name} " in line]
    used = {option for line in lines for option in re.findall(r"--[\w-]+", line)}
    # The options as argparse lists them, after the description that quotes the command.
    assert used <= set(re.findall(r"--[\w-]+", printed.rpartition("options:")[2]))


@pytest.mark.train
@pytest.mark.parametrize("stage", planted.OUTPUTS)
def test_a_cut_stage_hands_on_the_same_for_every_image(stage, tmp_path):
    whole = trained_run(strategy="full", epochs=2).run_dir
    for parent in (whole, planted.cut_stage(whole, stage, tmp_path)):
        config = tiny_config(strategy="linear_probe", from_run=str(parent))
        logits = np.stack(load_predictions(train(config, tmp_path / "runs").run_dir)["logits"])
        assert (np.ptp(logits, axis=0).max() < 1e-3) == (parent != whole)


def test_measured_answers_are_the_best_stages_and_nothing_where_little_is_gained():
    alone = {"conv1": 0.90, "layer1": 0.895, "layer2": 0.88}
    assert planted.find_right_answers(alone, 0.70) == ["conv1", "layer1"]
    assert planted.find_right_answers(alone, 0.89) == ["conv1", "layer1", "nothing"]


def test_planted_tasks_are_twenty_with_names_of_their_own():
    names = [task.name for task in planted.plan_tasks()]
    assert len(set(names)) == len(names) == 20


def test_a_side_that_ran_few_epochs_is_counted_up_to_all_of_them():
    assert speed.extrapolate_seconds([10.0, 14.0, 18.0], 10) == 10 + 9 * 4
    assert speed.extrapolate_seconds([10.0], 3) == 30
    assert speed.extrapolate_seconds([10.0, 14.0], 2) == 14


def test_rounds_are_summed_up_by_their_own_ratios():
    def summarise(network="resnet18", job="feature_extraction", side=speed.PLAIN, size=(2000, 650)):
        rounds = [(300.0, 10.0), (100.0, 5.0), (640.0, 16.0)]
        return speed.describe_rounds(network, job, side, rounds, size)

    line = summarise()
    assert "30.00 times as fast as plain loop: 10.0 s against 300.0 s" in line
    assert "(20.00 to 40.00 in 3 rounds; 32 wanted)" in line
    assert "45 wanted" in summarise(size=(10000, 1500))
    assert "wanted" not in summarise(size=(100, 50))
    assert "wanted" not in summarise(network="efficientnet_lite0")
    assert "wanted" not in summarise(side="fastai")
    assert "of one last_block of plain loop" in (line := summarise(job="comparison"))
    assert "at most 1 wanted" in line


def run_benchmark(name, options):
    command = [sys.executable, "-m", f"benchmarks.{name}", *options.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.processes
def test_the_sides_train_the_same():
    small = "--train 12 --val 4 --epochs 2 --plain-epochs 1 --rounds 1"
    one = "--networks efficientnet_lite0 --jobs last_block"
    title, measured, summed = run_benchmark("speed", f"{small} {one}")
    assert title == "round 1"
    assert "1,022,724 parameters train" in measured
    assert summed.startswith("efficientnet_lite0, last_block: ")


def test_generated_runs_are_finished_and_have_their_steps(tmp_path):
    scale.write_runs(tmp_path, 3, 16)
    runs = RunStore(tmp_path).list_runs()
    assert [(run.status, run.notices, run.config.seed) for run in runs] == [
        ("finished", (), seed) for seed in (2, 1, 0)
    ]
    assert [len(run.history.steps) for run in runs] == [16] * 3
    assert [len(run.history.epochs) for run in runs] == [8] * 3


@pytest.mark.processes
def test_growth_is_measured_part_by_part():
    (line,) = run_benchmark("scale", "--images 200")
    parts = [part for part in json.loads(line).values() if isinstance(part, dict)]
    found = {span: value for part in parts for span, value in part.items()}
    for span in ("index", "split_and_check", "page_findings_again", "edits_applied"):
        assert found[span]["peak_mb"] >= found["base_mb"] > 0


def test_without_a_gpu_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit, match=r"^Nothing was measured: .*no cuda here.*$") as ended:
        gpu.main()
    assert "\n" not in str(ended.value)


@pytest.mark.train
def test_the_gpu_benchmark_prints_a_table_and_the_suites_last_line(monkeypatch, capsys):
    rounds = [{gpu.PLAIN: 10.0, gpu.AUTOCAST: 20.0, gpu.THAW: 40.0}]
    ended = subprocess.CompletedProcess([], 0, "FAILED no\n=== 5 passed in 1.0s ===\n", "")
    monkeypatch.setattr(gpu, "ROUNDS", 1)
    monkeypatch.setattr(gpu, "measure_jobs", lambda *_: (rounds, 1.0))
    monkeypatch.setattr(gpu, "subprocess", SimpleNamespace(run=lambda *_, **__: ended))
    options = "--device cpu --networks resnet18 --strategies last_block --side 64 --copied 1"
    small = "--train 4 --val 4 --batch 2 --image-size 64"
    monkeypatch.setattr(sys, "argv", ["gpu", *options.split(), *small.split()])
    with pytest.raises(SystemExit, match="False"):
        gpu.main()
    *lines, header, _, row = capsys.readouterr().out.splitlines()
    assert header.count("|") == row.count("|") == 7
    assert row.startswith("| ResNet-18, last block | 10 | 20 | 40 | 4.0 (4.0 to 4.0) | ")
    assert any("Tests: 5 passed in 1.0s." in line for line in lines)
    assert (gpu.choose_image_size("resnet18", 64), gpu.choose_image_size("vit_b_16", 64)) == (
        64,
        224,
    )
