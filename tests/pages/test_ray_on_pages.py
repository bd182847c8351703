"""Pages say where runs train that tasks on other machines have, and forecast what several machines take."""

import pytest

from finetune_core import paths
from finetune_core.config import make_config
from finetune_core.runs.executors import InProcess
from finetune_core.runs.record import append_event, create_run
from finetune_core.training.events import RunPlaced
from pages.shared.configure.comparison_form import _total
from tests.pages.harness import open_page, unescaped


@pytest.fixture
def elsewhere(folder):
    """Ids of a run that a task on the machine ``far`` has, and of one that waits."""
    settings = {"data": str(folder), "backbone": "squeezenet1_1", "weights": "none", "image_size": 32}
    reservations = [create_run(make_config(settings | {"seed": seed}), paths.runs_dir()) for seed in (0, 1)]
    append_event(reservations[0].run_dir, RunPlaced("far", "task"))
    yield [one.run_dir.name for one in reservations]
    for one in reservations:
        one.lock.release()


def test_the_train_page_names_the_machine(elsewhere):
    assert f"far · {elsewhere[0]}" in unescaped(open_page("train", run=elsewhere[0]))


def test_the_table_of_a_comparison_says_where_each_run_trains(elsewhere):
    at = open_page("compare", runs=elsewhere)
    assert sorted(at.dataframe[0].value["Trains on"]) == ["far", "–"]


def test_the_table_says_nothing_of_machines_where_there_is_one(elsewhere):
    assert "Trains on" not in open_page("compare", runs=elsewhere[1:]).dataframe[0].value.columns


class Machines(InProcess):
    def machines(self):
        return [1, 1]


def test_a_forecast_for_several_machines_says_what_is_saved(monkeypatch):
    executor = Machines()
    monkeypatch.setattr("pages.shared.configure.comparison_form.worker", lambda: type("W", (), {"executor": executor}))
    assert _total([[100, 40, 40]]) == (
        "about 2 min 20 s, 2 runs at a time on 2 machines. Runs that find the frozen stages' output on their machine save 1 min 0 s of work"
    )
    monkeypatch.setattr(executor, "machines", lambda: [1])
    assert _total([[100, 40, 40]]) == "about 3 min 0 s"
