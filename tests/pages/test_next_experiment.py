"""The next experiment on Compare: named with its reason and forecast, filled in on Configure, never started from there."""

from dataclasses import replace

import pytest

from finetune_core import paths
from finetune_core.config import make_config
from finetune_core.data.dataset import load_dataset
from finetune_core.data.recent import remember
from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.comparison.layer_diagnostics import Layers, StageMove
from finetune_core.evaluation.comparison.next_experiment import (
    evidence_of,
    forecast_in_words,
    forecast_of,
    next_experiment,
)
from finetune_core.evaluation.single_run.shift import predict_shifted
from finetune_core.inspection.learned import Probe
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.store import RunStore
from finetune_core.training.predictions import load_predictions
from finetune_core.training.speed_book import SpeedBook
from finetune_core.work import finish
from tests.answers import answer_rightly
from tests.pages.harness import labels, open_page, press, unescaped
from tests.shifted import darkened
from tests.trained import QUICK

FILL_IN = "Fill in on Configure"


@pytest.fixture
def data(trained_once, monkeypatch):
    monkeypatch.setenv("THAW_DATA_ROOTS", str(trained_once.data.parent))
    paths.runs_dir().mkdir(parents=True)
    return trained_once.data


@pytest.fixture
def trained(trained_once, data):
    """A run of Last block and one of Feature extraction."""
    trained_once.copied(paths.runs_dir())
    return RunStore(paths.runs_dir()).runs()


@pytest.fixture
def probe(data):
    """A linear probe, fitted in the app's own folder."""
    list(
        execute(
            create_run(
                make_config(QUICK | {"data": str(data), "strategy": "linear_probe"}),
                paths.runs_dir(),
            )
        )
    )
    return RunStore(paths.runs_dir()).runs()[0]


def test_a_baseline_that_is_missing_is_offered_once(trained, data):
    found = next_experiment(evidence_of(compare_runs(trained)))
    at = open_page("compare")
    text = unescaped(at)
    assert "Fit a linear probe as the baseline" in text
    assert found.reason in text
    assert labels(at).count("Fit the linear probe as the baseline") == 1
    assert FILL_IN not in labels(at)


@pytest.fixture
def distorting(probe, data, tmp_path):
    """A linear probe and a run of Last block, made to answer as if training had paid on its own images only; and the other data."""
    config = make_config(QUICK | {"data": str(data), "strategy": "last_block"})
    list(execute(create_run(config, paths.runs_dir())))
    runs = RunStore(paths.runs_dir()).runs()
    tested = load_predictions(probe.run_dir)
    tested = tested.loc[tested["split"] == "test", "id"]
    other = darkened(tested, data, tmp_path / "dark")
    for run in runs:
        answer_rightly(run, run.config.strategy == "last_block")
    fingerprint = finish(predict_shifted(runs, str(other)))
    for run in runs:
        answer_rightly(run, run.config.strategy == "linear_probe", fingerprint)
    return runs


def test_where_training_lost_what_frozen_features_have_on_shifted_images_lp_ft_is_filled_in(
    distorting, data
):
    at = open_page("compare")
    text = unescaped(at)
    assert "Train “Linear probe, then full (LP-FT)”" in text
    assert "beats “Linear probe” by 100.0 points" in text
    assert "points (100.0 to 100.0) worse on" in text
    press(at, FILL_IN)
    assert at.title[0].value == "Configure"
    assert at.session_state["form_strategy"] == "linear_probe_then_full"
    assert at.session_state["form_image_size"] == QUICK["image_size"]
    assert at.session_state["data_path"][1] == str(data)
    assert len(RunStore(paths.runs_dir()).runs()) == len(distorting)


def falling(run):
    """Layers of a run whose probes say that the last frozen stage lost what an earlier one has."""
    names = [stage["name"] for stage in run.started["stages"]]
    moves = tuple(StageMove(name, name == names[-1], 0.0, 1.0, None, 0.1) for name in names)
    probes = tuple(Probe(name, 0.9 if name == names[2] else 0.6, 0.01) for name in names[:-1])
    return Layers(moves, probes, 100, 100, 0.9)


def test_what_is_inferred_says_so(probe, monkeypatch):
    monkeypatch.setattr("finetune_core.evaluation.comparison.next_experiment.known_layers", falling)
    at = open_page("compare")
    assert "Thaw block7 next" in unescaped(at)
    assert "Inferred from features and gradients" in unescaped(at)
    press(at, FILL_IN)
    assert at.session_state["form_strategy"] == "last_block"


def test_where_nothing_stands_out_the_page_says_what_could_tell(probe):
    at = open_page("compare")
    assert "None stands out from the verdicts. The layer diagnostics" in unescaped(at)
    assert FILL_IN not in labels(at)


def test_the_forecast_is_measured_when_asked_for_on_the_data_of_the_runs(probe, data, finished):
    config = make_config(QUICK | {"data": str(data), "strategy": "last_block", "seed": 1})
    list(execute(create_run(config, paths.runs_dir())))
    assert "while other data are chosen" in unescaped(open_page("compare"))
    at = open_page("compare", state={"data_id": remember(str(data), None)})
    assert "Forecast: " not in unescaped(at)
    press(at, "Forecast")
    finished(at)
    found = next_experiment(evidence_of(compare_runs(RunStore(paths.runs_dir()).runs())))
    takes = forecast_of(found, load_dataset(data, **config.split_settings), SpeedBook())
    assert takes
    assert f"Forecast: {forecast_in_words(takes)}" in unescaped(at)
    alone = forecast_of(
        replace(found, configs=found.configs[:1]),
        load_dataset(data, **config.split_settings),
        SpeedBook(),
    )
    assert len(found.configs) == 2
    assert takes.seconds > alone.seconds
