"""A thousand damaged copies of a real run, beside a good one: the command line and the pages name what is wrong, never break, never wait,
and say of the good run what they always said. The ways to damage are in ``damage.py``."""

import json
import random
import shutil
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest
from typer.main import get_command
from typer.testing import CliRunner

from finetune_core import paths
from finetune_core.__main__ import app
from finetune_core.config import make_config
from finetune_core.evaluation.comparison.layer_diagnostics import measure_layers
from finetune_core.evaluation.prediction.neighbours import compute_neighbourhood, encoder
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.evaluation.single_run.evaluate import evaluation
from finetune_core.evaluation.single_run.robustness import measure_robustness
from finetune_core.evaluation.single_run.shift import predict_shifted
from finetune_core.exporters.formats import export_run
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import RunStore, read_run, summary
from finetune_core.training.events import StepEnded
from tests.damage import damage
from tests.deadline import SECONDS, in_time
from tests.shifted import darkened

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {
    "image_size": 32,
    "epochs": 2,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "precision": "fp32",
}
SETTINGS |= {"strategy": "feature_extraction", "val_fraction": 0.25, "test_fraction": 0.25}
CASES, PAGE_CASES = 1000, 24
fuzzed = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
GOOD, BAD = "20260101-000000-good", "20260102-000000-bad"


@pytest.fixture(autouse=True, scope="module")
def quick(components_found_once):
    """One thread, and the commands put together once: that takes longer than many of them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", lru_cache(get_command))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(image_folder_once, tmp_path_factory):
    return image_folder_once(tmp_path_factory.mktemp("data") / "images", {"red": 8, "blue": 8})


@pytest.fixture(scope="module")
def other(data):
    """Another data set with the same classes."""
    return darkened(["red/000.png", "red/001.png", "blue/000.png"], data, data.parent / "other")


@pytest.fixture(scope="module")
def whole(home_of_shared_fixtures, data, other, tmp_path_factory):
    """A finished run, with everything that Thaw keeps in its folder."""
    reservation = create_run(
        make_config(SETTINGS | {"data": str(data)}), tmp_path_factory.mktemp("whole")
    )
    list(execute(reservation))
    RunStore(reservation.run_dir.parent).describe(reservation.run_dir.name, "baseline", "a note")
    run = read_run(reservation.run_dir)
    for work in (
        measure_layers([run]),
        measure_robustness(run, "test"),
        predict_shifted([run], str(other)),
        compute_neighbourhood(run, encoder(load_predictor(run))),
    ):
        list(work)
    export_run(run, "safetensors")
    return run.run_dir


@pytest.fixture(scope="module")
def halfway(home_of_shared_fixtures, data, tmp_path_factory):
    """A run that was stopped in its second epoch."""
    reservation = create_run(
        make_config(SETTINGS | {"data": str(data)}), tmp_path_factory.mktemp("halfway")
    )
    for event in execute(reservation):
        if isinstance(event, StepEnded) and event.epoch == 2:
            request_stop(reservation.run_dir)
    return reservation.run_dir


def asked(*arguments, change=""):
    """What the command line says; it ends cleanly."""
    with in_time(change):
        done = CliRunner().invoke(app, [str(one) for one in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise AssertionError(
            f"{change}: {' '.join(map(str, arguments[:1]))} ended with {done.exception!r}"
        ) from done.exception
    assert done.exit_code in (0, 1, 2), change
    assert done.exit_code == 0 or done.stderr.strip(), f"{change}: no word on what is wrong"
    assert "Traceback" not in done.output, change
    return done


@pytest.fixture(scope="module")
def beside(whole, tmp_path_factory):
    """A folder of runs, with the good one in it; what the command line says of it; and an image."""
    runs = tmp_path_factory.mktemp("runs")
    shutil.copytree(whole, runs / GOOD)
    return runs, asked("evaluate", runs / GOOD, "--json").stdout, summary(read_run(runs / GOOD))


def command_for(file, chance, bad, good, image, other):
    """One that reads the file that was damaged, the quick ones more often."""
    quick = [
        ("evaluate", bad),
        ("evaluate", bad, "--json"),
        ("compare", bad, good),
        ("compare", good, bad, "--json"),
        ("export", bad, "--format", "tensorboard"),
        ("train", "--config", bad / "config.json", "--epochs", "0"),
    ]
    slow = [("predict", bad, image), ("export", bad, "--format", "card")]
    if file.startswith("export/"):
        return ("predict", bad / "export" / "safetensors", image)
    if file.startswith("shifted-"):
        return ("evaluate", bad, "--on", other, "--json")
    if file in ("best.safetensors", "neighbours.npz"):
        return chance.choice(slow)
    return chance.choice(slow if chance.random() < 0.05 else quick)


@pytest.mark.exhaustive
@settings(fuzzed, max_examples=CASES)
@given(chance=st.randoms(use_true_random=True))
def test_the_command_line_names_what_is_damaged_a_thousand_times(
    whole, data, other, beside, chance
):
    damaged_one_is_named(whole, data, other, beside, chance)


@pytest.mark.fuzz
@settings(fuzzed, max_examples=CASES // 5)
@given(chance=st.randoms(use_true_random=True))
def test_the_command_line_names_what_is_damaged(whole, data, other, beside, chance):
    damaged_one_is_named(whole, data, other, beside, chance)


def damaged_one_is_named(whole, data, other, beside, chance):
    runs, said, known = beside
    bad = runs / BAD
    shutil.rmtree(bad, ignore_errors=True)
    shutil.copytree(whole, bad)
    change = damage(bad, chance)
    with in_time(change):
        found, damaged = RunStore(runs).all()
    assert {one.run_id for one in (*found, *damaged)} == {GOOD, BAD}, change
    assert [summary(run) | {"run_dir": ""} for run in found if run.run_id == GOOD] == [
        known | {"run_dir": ""}
    ], change
    command = command_for(
        change.partition(":")[0], chance, bad, runs / GOOD, data / "red" / "000.png", other
    )
    done = asked(*command, change=change)
    if damaged and command[0] != "train" and bad in command:
        assert done.exit_code == 2, change
        assert "damaged" in done.stderr, change
    assert evaluation(read_run(runs / GOOD)).accuracy == json.loads(said)["accuracy"], change


@pytest.mark.fuzz
@settings(fuzzed, max_examples=15)
@given(chance=st.randoms(use_true_random=True))
def test_a_damaged_run_is_resumed_or_refused(halfway, tmp_path_factory, chance):
    bad = tmp_path_factory.mktemp("resumed") / BAD
    shutil.copytree(halfway, bad)
    change = damage(bad, chance)
    done = asked("resume", bad, change=change)
    assert done.exit_code or read_run(bad).status == "finished", change


def opened(page, change, **query):
    at = AppTest.from_file(str(ROOT / "app.py"), default_timeout=SECONDS)
    for name, value in query.items():
        at.query_params[name] = value
    if page != "app.py":
        at.switch_page(page)
    with in_time(change):
        at.run()
    assert not at.exception, f"{change}: {page}: {at.exception[0].stack_trace}"
    return at


@pytest.mark.fuzz
def test_the_pages_name_what_is_damaged(whole, data, monkeypatch):
    monkeypatch.setenv("THAW_DATA_ROOTS", str(data.parent))
    chance, runs, done = random.Random(0), paths.runs_dir(), {}
    shutil.copytree(whole, runs / GOOD)
    for number in range(PAGE_CASES):
        bad = runs / f"{BAD}-{number:02}"
        shutil.copytree(whole, bad)
        done[bad.name] = damage(bad, chance)
    (runs / f"{BAD}-00" / "config.json").write_text("[]")
    everything = "; ".join(done.values())
    found, damaged = RunStore(runs).all()
    assert damaged
    for page in (
        "app.py",
        *(f"pages/{name}.py" for name in ("train", "runs", "evaluate", "compare", "predict")),
    ):
        named = (
            {"run": GOOD}
            if page in ("pages/train.py", "pages/evaluate.py", "pages/predict.py")
            else {}
        )
        at = opened(page, everything, **named)
        text = " ".join(element.value for element in at.get("markdown")).replace("\\", "")
        assert all(one.run_id in text for one in damaged), page
    for number, run in enumerate(run for run in found if run.run_id != GOOD):
        change = done[run.run_id]
        match number % 4:
            case 0:
                opened("pages/train.py", change, run=run.run_id)
            case 1:
                opened("pages/evaluate.py", change, run=run.run_id)
            case 2:
                opened("pages/compare.py", change, runs=[GOOD, run.run_id])
            case 3:
                opened("pages/predict.py", change, run=run.run_id)
