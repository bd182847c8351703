"""Pages say on which machines runs train, and forecast the time on several machines."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from finetune_core import paths
from finetune_core.runs.executors.in_process import InProcess
from finetune_core.runs.executors.protocol import Machine
from finetune_core.runs.record import append_event, create_run
from finetune_core.training.events import Progress, RunPlaced, make_event
from pages.shared.configure.comparison_form import _describe_total
from tests.factories import tiny_config, trained_run
from tests.pages.harness import ANN, open_page, unescaped_text


@pytest.fixture
def reserve(folder):
    """Reserve a run in this process without starting it: ``reserve(seed, owner)``."""
    made = []

    def create(seed, owner=""):
        made.append(create_run(tiny_config(folder, seed=seed), paths.runs_dir(), owner))
        return made[-1].run_dir

    yield create
    for one in made:
        one.lock.release()


@pytest.fixture
def elsewhere(reserve):
    """Return the ids of a run that trains on the machine ``far``, and of one that waits."""
    run_dirs = [reserve(seed) for seed in (0, 1)]
    append_event(run_dirs[0], RunPlaced("far", "task"))
    return [run_dir.name for run_dir in run_dirs]


@pytest.fixture
def shared_machines(reserve, monkeypatch):
    """Set up two people's runs on ``far``, of which the first has begun; ``near`` is idle."""
    run_dirs = [
        reserve(seed, owner) for seed, owner in enumerate(("ben@example.org", "ann@example.org"))
    ]
    for run_dir in run_dirs:
        append_event(run_dir, RunPlaced("far", "task", gpus=1, cores=8))
    started = make_event(trained_run().history.started)
    append_event(run_dirs[0], replace(started, device_label="NVIDIA A2"))
    monkeypatch.setattr(
        "pages.shared.runs.machines.worker", lambda: SimpleNamespace(executor=Cluster())
    )


def used(user=None):
    return open_page("runs", user=user).dataframe[1].value.to_dict("list")


def test_the_runs_page_says_who_uses_which_machine_and_what_is_free(shared_machines):
    without_sign_in, table = used(), used(ANN)
    assert table["Machine"] == ["far", "far", "far", "near"]
    # Which of two that were made within a second comes first is chance.
    assert dict(zip(table["Owner"], table["Device"], strict=True)) == {
        "ann@example.org": "",
        "ben@example.org": "NVIDIA A2",
        "": "",
    }
    assert table["Owner"][2:] == ["", ""]
    assert table["Share"] == ["1 of 4 GPUs, 8 of 30 cores"] * 2 + [
        "2 of 4 GPUs, 14 of 30 cores",
        "2 of 2 cores",
    ]
    assert table["Run"][2:] == ["free", "free"]
    assert "Owner" not in without_sign_in


def test_of_a_run_of_this_machine_only_what_is_known_is_said(reserve):
    append_event(reserve(0), Progress("prepare", 0, 0))
    table = used()
    assert table.keys() == {"Machine", "Run", "Done"}
    assert table["Machine"] == ["this machine"]


def test_the_train_page_names_the_machine(elsewhere):
    assert f"far · {elsewhere[0]}" in unescaped_text(open_page("train", run=elsewhere[0]))


def test_the_table_of_a_comparison_says_where_each_run_trains_if_not_all_here(elsewhere):
    table = open_page("compare", runs=elsewhere).dataframe[0].value
    assert sorted(table["Trains on"]) == ["far", "–"]
    assert "Trains on" not in open_page("compare", runs=elsewhere[1:]).dataframe[0].value.columns


class Machines(InProcess):
    def slots_by_machine(self):
        return [1, 1]


class Cluster(InProcess):
    def list_machines(self):
        return [Machine("near", 0, 2), Machine("far", 4, 30)]


def test_a_forecast_for_several_machines_says_what_is_saved(monkeypatch):
    executor = Machines()
    monkeypatch.setattr(
        "pages.shared.configure.comparison_form.worker",
        lambda: type("W", (), {"executor": executor}),
    )
    assert _describe_total([[100, 40, 40]]) == (
        "about 2 min 20 s, 2 runs at a time on 2 machines. "
        "Runs that find the frozen stages' output on their machine save 1 min 0 s of work"
    )
    monkeypatch.setattr(executor, "slots_by_machine", lambda: [1])
    assert _describe_total([[100, 40, 40]]) == "about 3 min 0 s"
