"""Every page: opened in each state of the machine, with hostile names, links and damaged runs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from finetune_core import paths
from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.run_accuracy import run_accuracy
from finetune_core.formatting import format_percent
from finetune_core.runs.store import RunStore
from pages.shared.chrome import _UNDER_WHITE, PAGES, escape_markdown
from pages.shared.images import _OPENED_BY_IMAGE
from pages.shared.runs.first_run import _answer
from tests.deadline import wait_until
from tests.factories import NASTY, trained_run
from tests.pages.harness import (
    address,
    button_labels,
    open_page,
    page_text,
    press,
    primary_labels,
    unescaped_text,
)

ROOT = Path(__file__).resolve().parent.parent.parent
TITLES = {"home" if path == "app.py" else Path(path).stem: title for path, title, _ in PAGES}
HOSTILE = "[free money](https://example.org) <b>:red[x]"
# state -> page -> the text or the label that a user looks for there
WANTED = {
    "empty": {
        "home": "Try it now",
        "dataset": "Use the sample",
        "configure": "Use the sample",
        "train": "Try it now",
        "runs": "Try it now",
        "evaluate": "Try it now",
        "compare": "Use the sample",
        "predict": "Try it now",
    },
    "data": {
        "home": "Recent data sets",
        "dataset": "Configure the training",
        "configure": "Start training",
        "train": "Try it now",
        "runs": "Try it now",
        "evaluate": "Try it now",
        "compare": "Start 10 runs",
        "predict": "Try it now",
    },
    "runs": {
        "home": "Latest runs",
        "dataset": "Use the sample",
        "configure": "Use the sample",
        "train": "See the evaluation",
        "runs": "0 of 2 runs selected",
        "evaluate": "Confusion matrix",
        "compare": "Test accuracy",
        "predict": "This network distinguishes 3 classes",
    },
}


@pytest.mark.parametrize("state", WANTED)
@pytest.mark.parametrize("page", TITLES)
def test_page_opens_with_its_title_and_what_is_looked_for(page, state, request, data_id_of):
    query = {"data": data_id_of(request.getfixturevalue("folder"))} if state == "data" else {}
    if state == "runs":
        for run in request.getfixturevalue("runs"):
            RunStore(paths.runs_dir()).set_about(run.run_id, HOSTILE, f"note {HOSTILE}")
    at = open_page(page, **query)
    assert [title.value for title in at.title] == ["Thaw" if page == "home" else TITLES[page]]
    assert at.button, "nothing to press"
    # A page that is new has no entry yet.
    assert WANTED[state].get(page, "") in "\n".join([unescaped_text(at), *button_labels(at)])
    becomes_no_markup(at)
    links = at.get("page_link")
    assert len(links) >= len(TITLES) - 1
    carried = {key: [value] for key, value in query.items()}
    assert all(parse_qs(link.proto.query_string) == carried for link in links)


def becomes_no_markup(at):
    """Check that names of classes and runs are shown literally."""
    assert NASTY not in page_text(at)
    assert {element.proto.body for element in at.get("html")} <= {_UNDER_WHITE, _OPENED_BY_IMAGE}
    named = [line for line in page_text(at).splitlines() if "free money" in line]
    assert not any(mark in line for line in named for mark in ("](http", "<b>", ":red["))


def test_names_of_runs_are_shown(runs):
    RunStore(paths.runs_dir()).set_about(runs[0].run_id, HOSTILE, f"note {HOSTILE}")
    for page in ("home", "train"):
        at = open_page(page, run=runs[0].run_id)
        assert "free money" in unescaped_text(at)
        becomes_no_markup(at)


def test_home_tells_the_state_of_the_machine_in_a_line_and_has_one_primary_button():
    at = open_page("home")
    assert "CPU · " in unescaped_text(at)
    assert "memory free" in unescaped_text(at)
    assert button_labels(at) == ["Try it now", "Choose your data"]
    assert primary_labels(at) == ["Try it now"]


@pytest.mark.train
def test_the_first_press_compares_two_runs_on_the_sample_and_says_what_training_gained():
    at = press(open_page("home"), "Try it now")
    assert address(at)["data"] == "digits"
    assert at.get("progress")
    assert len(at.get("image")) == 12
    store = RunStore(paths.runs_dir())
    wait_until(lambda: all(run.history.end for run in store.list_runs()))
    assert {run.config.strategy for run in store.list_runs()} == {"linear_probe", "last_block"}
    at.run()
    [header] = [one.value for one in at.header if "training the last block" in one.value]
    accuracies = {
        run.config.strategy: format_percent(run_accuracy(run).value) for run in store.list_runs()
    }
    assert header.startswith(f"{accuracies['linear_probe']} → {accuracies['last_block']}: ")
    assert primary_labels(at) == ["Do this with your images"]
    first = {run.run_id for run in store.list_runs()}
    assert set(press(at, "See the comparison").query_params["runs"]) == first
    [probe] = [run for run in store.list_runs() if run.config.strategy == "linear_probe"]
    shutil.rmtree(probe.run_dir)
    press(open_page("home"), "Try it now")
    assert len(store.list_runs()) == 2, "what is finished is not trained again"


@pytest.mark.train
def test_where_training_gained_nothing_home_says_what_compare_says():
    comparison = compare_runs(
        [trained_run(strategy=name) for name in ("linear_probe", "last_block")]
    )
    assert _answer(comparison) == escape_markdown(comparison.verdict.lines[0])
    assert "gained" not in _answer(comparison)


def test_a_renamed_run_folder_is_listed_like_any_other(runs):
    runs[0].run_dir.rename(paths.runs_dir() / "baseline")
    assert "baseline" in page_text(open_page("home"))
    assert "Test accuracy" in page_text(open_page("train", run="baseline"))


def test_every_link_takes_the_settings_along(folder, data_id_of):
    at = open_page("configure", data=data_id_of(folder))
    at.number_input(key="form_epochs").set_value(3).run()
    chosen = address(at)
    at = open_page("train", **chosen)
    assert address(at) == chosen
    expected = {key: [value] for key, value in chosen.items()}
    links = at.get("page_link")
    assert all(parse_qs(link.proto.query_string) == expected for link in links)


NEEDING_DATA = ("dataset", "configure", "compare")


def offers_nothing_to_train(at):
    return not at.metric and not [
        label for label in button_labels(at) if label.startswith("Start ")
    ]


def test_with_nothing_chosen_nothing_can_be_trained():
    for page in NEEDING_DATA:
        at = open_page(page)
        assert offers_nothing_to_train(at)
        assert "data" not in address(at)
    assert not (paths.data_dir() / "digits").exists()


@pytest.mark.parametrize(
    ("page", "asked"),
    [
        ("dataset", "nothing-0123456789ab"),
        ("configure", "../../../etc"),
        ("compare", "<script>alert(1)</script>"),
        ("configure", "x" * 5000),
        ("dataset", "[a](http://b)"),
    ],
)
def test_an_address_that_names_no_known_data_says_so_and_takes_no_other(page, asked):
    at = open_page(page, data=asked)
    assert "that the address names is not known here" in unescaped_text(at)
    assert "](http://b)" not in page_text(at)
    assert offers_nothing_to_train(at)


def test_an_address_cannot_name_data_outside_the_folders_that_may_be_read(
    folder, data_id_of, tmp_path, monkeypatch
):
    monkeypatch.setenv("THAW_DATA_ROOTS", str(tmp_path))
    for page in NEEDING_DATA:
        at = open_page(page, data=data_id_of(folder))
        assert "outside the folders that Thaw may read" in unescaped_text(at)
        assert offers_nothing_to_train(at)
        assert not at.get("image")
        assert f"open-{data_id_of(folder)}" not in [one.key for one in at.button]


@pytest.fixture
def damaged():
    """Return the directory of a run whose config is a list."""
    run_dir = paths.runs_dir() / "20990101-000000-bad"
    run_dir.mkdir(parents=True)
    (run_dir / "config.json").write_text("[1]")
    return run_dir


def test_a_damaged_run_is_named_with_its_reason_and_moved_to_the_trash(damaged):
    for page in ("home", "train", "evaluate", "compare", "predict", "runs"):
        at = open_page(page)
        assert "20990101" in page_text(at)
        assert "holds no settings" in page_text(at)
    at.button(key=f"trash-{damaged.name}").click().run()
    assert not damaged.exists()
    assert "20990101" not in page_text(at)
    assert (damaged.parent / ".trash" / damaged.name / "config.json").is_file()


def test_an_address_of_a_damaged_run_says_why_another_one_is_shown(runs, damaged):
    for page in ("train", "evaluate"):
        at = open_page(page, run=damaged.name)
        assert "it is damaged" in unescaped_text(at)
        assert address(at)["run"] in {run.run_id for run in runs}


def test_lines_of_events_that_were_left_out_are_reported_beside_the_run(runs):
    with (runs[0].run_dir / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event": "EpochEnded"}) + "\n")
    assert "1 line of events" in unescaped_text(open_page("train", run=runs[0].run_id))


def test_an_unknown_run_in_the_address_is_said_and_not_fatal(runs):
    assert "There is no run" in page_text(open_page("train", run="no-such-run"))


FRAME = """
from types import SimpleNamespace
from streamlit.testing.v1 import AppTest

sys.modules["pages.shared.home"] = SimpleNamespace(draw_home=lambda: None)
at = AppTest.from_file("app.py").run(timeout=60)
assert [title.value for title in at.title] == ["Thaw"], at.exception
print([name for name in ("torch", "torchvision", "scipy", "sklearn") if name in sys.modules])
del sys.modules["pages.shared.home"]
import pages.shared.home
print([name for name in ("scipy.stats", "sklearn", "timm") if name in sys.modules])
"""


@pytest.mark.processes
def test_a_new_server_draws_the_title_before_what_takes_seconds_to_import():
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{FRAME}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.splitlines() == ["[]", "[]"], done.stderr


FIRST_USES = """
import threading
import torch
import pages.shared.home
from finetune_core.models.catalogue import backbone_info, backbone_names
from finetune_core.models.network import network_stages
from finetune_core.training.data_pipeline.batches import center_crop
from finetune_core.training.heads.folds import stratified_folds

uses = [
    lambda: backbone_names(),
    lambda: backbone_info("resnet18"),
    lambda: network_stages("efficientnet_lite0", 96),
    lambda: center_crop(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 4),
    lambda: stratified_folds(torch.arange(20).numpy() % 2, torch.arange(20).numpy()),
]
threads = [threading.Thread(target=use) for use in uses]
for one in threads:
    one.start()
for one in threads:
    one.join()
"""


@pytest.mark.processes
def test_what_is_imported_at_its_first_use_can_be_used_by_several_threads_at_once():
    """Check threads that import at once: torchvision imports itself in a circle, and would fail."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_USES], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
