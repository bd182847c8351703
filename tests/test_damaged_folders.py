"""Damaged copies of a real run, beside an intact one.

The command line and the pages name the problem, never fail, never wait, and report the intact run
as before. ``damage.py`` holds the kinds of damage.
"""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from streamlit.testing.v1 import AppTest

from finetune_core import paths
from finetune_core.evaluation.comparison.layer_diagnostics import measure_layers
from finetune_core.evaluation.prediction.neighbours import compute_neighbourhood, make_encoder
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.evaluation.single_run.evaluate import evaluation
from finetune_core.evaluation.single_run.robustness import measure_robustness
from finetune_core.evaluation.single_run.shift import predict_shifted
from finetune_core.exporters.formats import export_run
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import RunStore, read_run, summarize_run
from finetune_core.training.events import StepEnded
from tests.command_line import thaw
from tests.damage import damage
from tests.deadline import SECONDS, in_time
from tests.factories import copy_run, shared_images, tiny_config, trained_run
from tests.shifted import darken_images

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("train", "runs", "evaluate", "compare", "predict")
PAGES = ("app.py", *(f"pages/{name}.py" for name in NAMES))
GOOD, BAD = "20260101-000000-good", "20260102-000000-bad"
SPLIT = {"strategy": "feature_extraction", "val_fraction": 0.25, "test_fraction": 0.25}


@pytest.fixture(autouse=True, scope="module")
def single_thread(cached_component_manifests):
    """Compute in one thread. The networks and data of this file are too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(home_of_shared_fixtures):
    return shared_images(red=8, blue=8)


@pytest.fixture(scope="module")
def other(data, tmp_path_factory):
    """Return another data set with the same classes."""
    names = ["red/000.png", "red/001.png", "blue/000.png"]
    return darken_images(names, data, tmp_path_factory.mktemp("other") / "images")


@pytest.fixture(scope="module")
def whole(data, other, tmp_path_factory):
    """Return a finished run with everything that Thaw stores in its directory."""
    folder = tmp_path_factory.mktemp("whole")
    run_dir = copy_run(trained_run(tiny_config(data, **SPLIT)).run_dir, folder)
    RunStore(folder).set_about(run_dir.name, "baseline", "a note")
    run = read_run(run_dir)
    for work in (
        measure_layers([run]),
        measure_robustness(run, "test"),
        predict_shifted([run], str(other)),
        compute_neighbourhood(run, make_encoder(load_predictor(run))),
    ):
        list(work)
    export_run(run, "safetensors")
    return run_dir


def call(*arguments, change=""):
    """Call the command line, which ends in time with a status of its own and no traceback."""
    with in_time(change):
        try:
            done = thaw(*arguments)
        except Exception as error:
            raise AssertionError(f"{change}: {arguments[0]} ended with {error!r}") from error
    assert done.returncode in (0, 1, 2), change
    assert done.returncode == 0 or done.stderr.strip(), f"{change}: no word on what is wrong"
    assert "Traceback" not in done.stdout + done.stderr, change
    return done


def choose_command(file, chance, bad, good, image, other):
    """Return a command that reads the damaged file. Quick commands are chosen more often."""
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


@pytest.mark.parametrize(
    "seeds",
    [
        pytest.param(range(15), id="few", marks=[pytest.mark.fuzz, pytest.mark.journey]),
        pytest.param(range(15, 60), id="more", marks=pytest.mark.fuzz),
        pytest.param(range(60, 1000), id="a thousand", marks=pytest.mark.exhaustive),
    ],
)
def test_the_command_line_names_what_is_damaged(whole, data, other, tmp_path, seeds):
    good, bad, image = tmp_path / GOOD, tmp_path / BAD, data / "red" / "000.png"
    shutil.copytree(whole, good)
    known = summarize_run(read_run(good)) | {"run_dir": ""}
    accuracy = json.loads(call("evaluate", good, "--json").stdout)["accuracy"]
    refused = 0
    for seed in seeds:
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(whole, bad)
        chance = random.Random(seed)
        change = f"{seed}: {damage(bad, chance)}"
        with in_time(change):
            found, damaged = RunStore(tmp_path).list_all()
        assert {one.run_id for one in (*found, *damaged)} == {GOOD, BAD}, change
        (here,) = (summarize_run(run) for run in found if run.run_id == GOOD)
        assert here | {"run_dir": ""} == known, change
        file = change.split(":")[1].strip()
        command = choose_command(file, chance, bad, good, image, other)
        done = call(*command, change=change)
        if damaged and command[0] != "train" and bad in command:
            refused += 1
            assert done.returncode == 2, change
            assert "damaged" in done.stderr, change
        assert evaluation(read_run(good)).accuracy == accuracy, change
    assert refused


@pytest.mark.fuzz
def test_a_damaged_run_is_resumed_or_refused(data, tmp_path):
    reservation = create_run(tiny_config(data, **SPLIT), tmp_path / "runs")
    halfway = reservation.run_dir
    for event in execute(reservation):
        if isinstance(event, StepEnded) and event.epoch == 2:
            request_stop(halfway)
    ends = []
    for seed in range(12):
        bad = shutil.copytree(halfway, tmp_path / str(seed) / BAD)
        change = f"{seed}: {damage(bad, random.Random(seed))}"
        ends.append(call("resume", bad, change=change).returncode)
        assert ends[-1] or read_run(bad).status == "finished", change
    assert {0, 2} <= set(ends)


def open_page(page, change, **query):
    at = AppTest.from_file(str(ROOT / "app.py"), default_timeout=SECONDS)
    at.query_params.update(query)
    if page != "app.py":
        at.switch_page(page)
    with in_time(change):
        at.run()
    assert not at.exception, f"{change}: {page}: {at.exception[0].stack_trace}"
    return at


@pytest.mark.fuzz
def test_the_pages_name_what_is_damaged(whole, data, monkeypatch):
    monkeypatch.setenv("THAW_DATA_ROOTS", str(data.parent))
    chance, runs, changes = random.Random(0), paths.runs_dir(), {}
    shutil.copytree(whole, runs / GOOD)
    for number in range(12):
        bad = shutil.copytree(whole, runs / f"{BAD}-{number:02}")
        changes[bad.name] = damage(bad, chance)
    (runs / f"{BAD}-00" / "config.json").write_text("[]")
    found, damaged = RunStore(runs).list_all()
    assert damaged
    of_one_run = ("pages/train.py", "pages/evaluate.py", "pages/predict.py")
    for page in PAGES:
        named = {"run": GOOD} if page in of_one_run else {}
        at = open_page(page, "; ".join(changes.values()), **named)
        text = " ".join(element.value for element in at.get("markdown")).replace("\\", "")
        assert all(one.run_id in text for one in damaged), page
    for number, run_id in enumerate(run.run_id for run in found if run.run_id != GOOD):
        page = (*of_one_run, "pages/compare.py")[number % 4]
        named = {"runs": [GOOD, run_id]} if page == "pages/compare.py" else {"run": run_id}
        open_page(page, changes[run_id], **named)
