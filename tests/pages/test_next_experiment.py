"""Next experiment on Compare: reason and forecast, started or filled in on Configure."""

from dataclasses import replace

import pytest

from finetune_core import paths
from finetune_core.data.dataset import load_dataset
from finetune_core.data.recent import remember_source
from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.comparison.experiment import describe_forecast, forecast_experiment
from finetune_core.evaluation.comparison.layer_diagnostics import Layers, StageChange
from finetune_core.evaluation.comparison.next_experiment import (
    RULES,
    collect_evidence,
    next_experiment,
)
from finetune_core.evaluation.single_run.shift import predict_shifted
from finetune_core.inspection.learned import Probe
from finetune_core.runs.store import RunStore
from finetune_core.training.devices.speed_book import SpeedBook
from finetune_core.training.predictions import load_predictions
from finetune_core.work import finish
from tests.answers import answer_rightly
from tests.deadline import wait_until
from tests.factories import Shared, shared_images, trained_run
from tests.pages.harness import button_labels, open_page, place_run, press, unescaped_text
from tests.shifted import darken_images

FILL_IN = "Fill in on Configure"


@pytest.fixture(autouse=True)
def readable(monkeypatch):
    monkeypatch.setenv("THAW_DATA_ROOTS", str(Shared.folder))


@pytest.fixture
def no_profile(monkeypatch):
    """Keep the profile, which would come first, from being offered."""
    monkeypatch.setitem(RULES, "profile", lambda _: None)


@pytest.fixture
def probe():
    """Copy a linear probe into the app's own folder."""
    return place_run(trained_run(strategy="linear_probe"), "probe")


@pytest.fixture
def last_block():
    """Copy a run of Last block into the app's own folder."""
    return place_run(trained_run(strategy="last_block"), "last-block")


def test_a_baseline_that_is_missing_is_offered_once(last_block):
    found = next_experiment(collect_evidence(compare_runs([last_block])))
    at = open_page("compare")
    text = unescaped_text(at)
    assert "Fit a linear probe as the baseline" in text
    assert found.reason in text
    assert button_labels(at).count("Fit a linear probe as the baseline") == 1
    assert FILL_IN not in button_labels(at)


def test_a_finished_probe_is_found_whatever_its_learning_rate(last_block):
    """Check that no second probe trains: a fitted head has no learning rate."""
    probe = place_run(trained_run(strategy="linear_probe", learning_rate=0.5), "probe")
    at = open_page("compare", runs=[last_block.run_id])
    press(at, "Fit a linear probe as the baseline")
    assert set(at.session_state["compared_runs"]) == {last_block.run_id, probe.run_id}
    assert len(RunStore(paths.runs_dir()).list_runs()) == 2


@pytest.fixture
def distorted_runs(tmp_path):
    """Write two seeds of each strategy, as if training had paid on its own images only."""
    probes, tuned = (
        [place_run(trained_run(strategy=name, seed=seed), f"{name}-{seed}") for seed in (0, 1)]
        for name in ("linear_probe", "last_block")
    )
    runs = [*probes, *tuned]
    tested = load_predictions(runs[0].run_dir)
    tested = tested.loc[tested["split"] == "test", "id"]
    other = darken_images(tested, shared_images(), tmp_path / "dark")
    for run in runs:
        answer_rightly(run, run in tuned)
    fingerprint = finish(predict_shifted(runs, str(other)))
    for run in runs:
        answer_rightly(run, run in probes, fingerprint)
    return runs


@pytest.mark.train
@pytest.mark.usefixtures("no_profile")
def test_where_training_lost_accuracy_on_shifted_images_lp_ft_starts_with_all_seeds(
    distorted_runs, device_is_taken
):
    at = open_page("compare")
    text = unescaped_text(at)
    assert "Train “Linear probe, then full (LP-FT)”" in text
    assert "beats “Linear probe” by 100.0 points" in text
    assert "points (100.0 to 100.0) worse on" in text
    assert FILL_IN not in button_labels(at)
    press(at, "Train “Linear probe, then full (LP-FT)”")
    known = {run.run_id for run in distorted_runs}
    queued = [run for run in RunStore(paths.runs_dir()).list_runs() if run.run_id not in known]
    assert {run.config.strategy for run in queued} == {"linear_probe_then_full"}
    assert sorted(run.config.seed for run in queued) == [0, 1]
    assert {run.config.image_size for run in queued} == {distorted_runs[0].config.image_size}
    assert {run.run_id for run in queued} < set(at.session_state["compared_runs"])


def falling_layers(run):
    """Return layers whose probes show that the last frozen stage lost what an earlier one has."""
    names = [stage["name"] for stage in run.started["stages"]]
    moves = tuple(StageChange(name, name == names[-1], 0.0, 1.0, None, 0.1) for name in names)
    probes = tuple(Probe(name, 0.9 if name == names[2] else 0.6, 0.01) for name in names[:-1])
    return Layers(moves, probes, 100, 100, 0.9)


def test_what_is_inferred_says_so(probe, monkeypatch):
    monkeypatch.setattr(
        "finetune_core.evaluation.comparison.next_experiment.load_layers", falling_layers
    )
    at = open_page("compare")
    assert "Train from layer3 on" in unescaped_text(at)
    assert "Inferred from features and gradients" in unescaped_text(at)
    press(at, FILL_IN)
    assert at.session_state["form_strategy"] == "last_two_blocks"


def test_beside_a_single_run_the_verdict_alone_says_what_to_do(probe):
    at = open_page("compare")
    text = unescaped_text(at)
    assert "Add another strategy to compare it with." in text
    assert "Next experiment" not in text
    assert FILL_IN not in button_labels(at)


@pytest.mark.train
def test_the_forecast_is_measured_when_asked_for_on_the_data_of_the_runs(
    no_profile, probe, last_block, wait_until_finished
):
    assert "while other data are chosen" in unescaped_text(open_page("compare"))
    at = open_page("compare", state={"data_id": remember_source(str(shared_images()), None)})
    assert "Forecast: " not in unescaped_text(at)
    press(at, "Forecast")
    wait_until_finished(at)
    found = next_experiment(collect_evidence(compare_runs([probe, last_block])))
    dataset = load_dataset(shared_images(), **last_block.config.split_settings)
    takes = forecast_experiment(found, dataset, SpeedBook())
    assert takes
    assert f"Forecast: {describe_forecast(takes)}" in unescaped_text(at)
    alone = forecast_experiment(replace(found, configs=found.configs[:1]), dataset, SpeedBook())
    assert len(found.configs) == 2
    assert takes.seconds > alone.seconds


@pytest.mark.train
def test_runs_that_have_not_converged_train_further_at_one_press(probe):
    slow = trained_run(strategy="feature_extraction", epochs=6, learning_rate=1e-5)
    slow = place_run(slow, "slow")
    at = open_page("compare")
    assert "Not trained long enough: feature extraction." in unescaped_text(at)
    press(at, "Train 1 run further")
    store = RunStore(paths.runs_dir())
    wait_until(lambda: not any(run.is_active for run in store.list_runs()))
    (longer,) = [run for run in store.list_runs() if run.run_id not in (slow.run_id, probe.run_id)]
    assert (longer.status, len(longer.history.epochs)) == ("finished", 12)
    assert at.session_state["compared_runs"] == [longer.run_id, probe.run_id]
