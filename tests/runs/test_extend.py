"""Training finished runs further, as copies."""

import json

import pytest

from finetune_core.errors import ConfigError, RunError
from finetune_core.files import path_exists
from finetune_core.runs.extend import extend_run, suggest_epochs
from finetune_core.runs.record import EVENTS_FILE, execute, reopen_run
from finetune_core.runs.store import RunStore
from tests.command_line import thaw
from tests.factories import copy_run, tiny_config, train, trained_run
from tests.training.equal import check_identical


def train_further(run, epochs):
    """Train a finished run to ``epochs`` in total, and return its copy."""
    name = extend_run(run, epochs)
    store = RunStore(run.run_dir.parent)
    assert store.get_run(name).status == "interrupted"
    list(execute(reopen_run(run.run_dir.parent / name)))
    return store.get_run(name)


@pytest.fixture
def finished(tmp_path):
    """Return a finished run in a folder that the test may fill."""

    def copy(**changes):
        return RunStore(tmp_path).load_run(copy_run(trained_run(**changes).run_dir, tmp_path))

    return copy


def test_a_constant_schedule_ends_as_if_it_had_had_all_epochs_from_the_start(finished, tmp_path):
    run = finished(strategy="full", epochs=2)
    before = (run.run_dir / EVENTS_FILE).read_bytes()
    longer = train_further(run, 4)
    assert (longer.status, len(longer.history.epochs)) == ("finished", 4)
    assert (run.run_dir / EVENTS_FILE).read_bytes() == before
    assert (longer.note, longer.config.epochs) == (f"Goes on with {run.run_id}.", 4)
    check_identical(longer.run_dir, trained_run(strategy="full", epochs=4).run_dir)


def test_a_cosine_rises_to_where_it_would_stand_and_falls_to_zero_again(finished):
    auto = ("epochs", "schedule")
    run = finished(strategy="full", epochs=2, schedule="cosine", warmup_epochs=0, auto=auto)
    longer = train_further(run, 4)
    rates = [row["learning_rate"] for row in longer.history.steps]
    per_epoch = longer.started["steps_per_epoch"]
    assert rates[2 * per_epoch] == pytest.approx(longer.config.learning_rate / 2)
    assert rates[-1] < rates[2 * per_epoch - 1] < rates[2 * per_epoch]
    assert longer.config.auto == ("schedule",)


@pytest.mark.train
@pytest.mark.parametrize("strategy", ["gradual_unfreezing", "linear_probe_then_full"])
def test_stages_thaw_when_they_did(finished, strategy):
    run = finished(strategy=strategy, epochs=6)
    longer = train_further(run, 8)
    thawed = [[stage["thaw_epoch"] for stage in one.started["stages"]] for one in (run, longer)]
    assert thawed[0] == thawed[1]


@pytest.mark.parametrize(
    ("changes", "epochs", "words"),
    [
        ({}, 2, "has 2 epochs already"),
        ({"strategy": "linear_probe"}, 4, "it has no epochs"),
    ],
)
def test_what_cannot_train_further_is_refused_and_leaves_nothing(finished, changes, epochs, words):
    run = finished(**changes)
    with pytest.raises(RunError, match=words):
        extend_run(run, epochs)
    assert [path.name for path in run.run_dir.parent.iterdir()] == [run.run_id]


@pytest.mark.parametrize("metric", ["val_accuracy", "val_loss"])
def test_a_run_that_stopped_early_ends_as_if_it_had_not_stopped(finished, metric):
    whole = {"epochs": 6, "strategy": "full", "schedule": "cosine", "learning_rate": 1e-8}
    run = finished(**whole, early_stopping=metric, patience=1)
    done = len(run.history.epochs)
    assert done < 6
    assert suggest_epochs(run) == 6
    with pytest.raises(RunError, match=f"has {done} epochs already"):
        extend_run(run, done)
    longer = train_further(run, 6)
    check_identical(
        longer.run_dir, trained_run(**whole, early_stopping=metric, patience=1000).run_dir
    )
    assert suggest_epochs(longer) == 12


def test_more_epochs_than_a_run_may_have_are_refused(finished):
    with pytest.raises(ConfigError, match="epochs"):
        extend_run(finished(), 10**6)


def test_a_damaged_line_of_the_finished_run_is_left_behind(finished):
    run = finished()
    with (run.run_dir / EVENTS_FILE).open("ab") as file:
        file.write(b'{"event": "StepEn\n[1]\n')
    name = extend_run(run, 3)
    lines = (run.run_dir.parent / name / EVENTS_FILE).read_text().splitlines()
    assert all(json.loads(line)["event"] for line in lines)


@pytest.mark.train
def test_the_command_resumes_a_finished_run_with_more_epochs(tmp_path):
    run = train(tiny_config(), tmp_path)
    done = thaw("resume", run.run_dir, "--epochs", 3, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["status"], result["epochs"]) == ("finished", 3)
    assert result["run_id"] != run.run_id
    assert path_exists(run.run_dir)
