"""Tests of heads fitted to the features of an earlier stage, where the run's network ends."""

import numpy as np
import pytest
import torch

from finetune_core.config import make_config
from finetune_core.config.run_config import FITTED
from finetune_core.data.dataset import load_dataset
from finetune_core.errors import ConfigError
from finetune_core.evaluation.comparison.arms import arm_titles
from finetune_core.evaluation.prediction.explain import explain
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.evaluation.single_run.evaluate import evaluation
from finetune_core.exporters.formats import export_run
from finetune_core.exporters.tensors import load_export
from finetune_core.runs.design import design_runs
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.store import summarize_run
from finetune_core.training import events
from finetune_core.training.checkpoints.networks import load_best_network
from finetune_core.training.data_pipeline.trunk import TrunkTables
from finetune_core.training.devices.speed_book import SpeedBook
from finetune_core.training.forecast.forecast import forecast_run
from finetune_core.training.forecast.timing import calibrate
from finetune_core.training.predictions import load_predictions
from finetune_core.training.strategies.catalogue import STRATEGIES
from finetune_core.training.strategies.stage_plan import list_stages
from finetune_core.work import finish
from tests.factories import tiny_config, trained_run
from tests.training.fits import only, record_run

STAGE = "layer2"


def fitted_run(strategy="linear_probe", **settings):
    return trained_run(strategy=strategy, features_from=STAGE, **settings)


@pytest.mark.parametrize("strategy", FITTED)
def test_the_network_ends_after_that_stage_and_is_evaluated(strategy):
    run = fitted_run(strategy)
    names = ["conv1", "layer1", STAGE, "head"]
    assert [stage["name"] for stage in run.started["stages"]] == names
    network, _ = load_best_network(run.config, run.run_dir)
    assert [stage.name for stage in network.stages] == names
    row = summarize_run(run)
    assert (row["status"], row["frozen_tensors"] > 20) == ("finished", True)
    assert row["total_parameters"] < 100_000
    assert row["val_accuracy"] > 0.8
    assert evaluation(run).accuracy == row["test_accuracy"]
    table = load_predictions(run.run_dir)
    assert (np.stack(table["logits"].tolist()).argmax(1) == table["label"]).mean() > 0.8


@pytest.mark.train
def test_without_the_cache_the_head_is_the_same():
    runs = [fitted_run(cache=cache) for cache in ("auto", "off")]
    assert [run.started["cache"]["where"] == "off" for run in runs] == [False, True]
    heads = [load_best_network(run.config, run.run_dir)[0].head_layers[0].weight for run in runs]
    torch.testing.assert_close(*heads, atol=1e-3, rtol=1e-2)


@pytest.mark.train
def test_what_is_cached_of_it_is_not_taken_for_the_whole_networks(monkeypatch, tmp_path):
    tables, real = [], TrunkTables.get_name

    def note(self, cut, view=""):
        tables.append((cut, real(self, cut, view)))
        return tables[-1][1]

    monkeypatch.setattr(TrunkTables, "get_name", note)
    record_run(tiny_config(strategy="prototypes", features_from=STAGE), tmp_path)
    ended = set(tables)
    tables.clear()
    _, seen = record_run(tiny_config(strategy="prototypes"), tmp_path)
    assert only(events.HeadFitted, seen)[0].features == 96
    shared = {cut for cut, _ in ended & set(tables)}
    assert shared >= {1, 2}, "of stages before the last, the tables are the same"
    assert 3 not in shared


@pytest.mark.parametrize("form", ["safetensors", pytest.param("onnx", marks=pytest.mark.train)])
def test_it_is_exported_like_any_other(form, tmp_path):
    run = fitted_run()
    exported = export_run(run, form, tmp_path / form)
    assert exported.files
    if form == "safetensors":
        images = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(
                load_export(exported.folder).network.model(images),
                load_predictor(run).network.model(images),
            )
    card = (exported.folder / "README.md").read_text()
    assert f"up to {STAGE}, its features averaged over the image" in card
    assert ("only Thaw can read these weights" in card) == (form == "safetensors")


def test_what_does_not_fit_is_refused_before_the_start(tmp_path):
    belongs = "features_from: belongs to linear_probe, prototypes, nearest_neighbours, not to full"
    with pytest.raises(ConfigError, match=belongs):
        make_config({"data": "x", "strategy": "full", "features_from": STAGE})
    config = tiny_config(strategy="linear_probe", features_from="layer9")
    with pytest.raises(ConfigError, match="there is no stage 'layer9'"):
        list(execute(create_run(config, tmp_path)))
    config = tiny_config(strategy="last_block", from_run=str(fitted_run().run_dir))
    with pytest.raises(ConfigError, match=f"ends after {STAGE} and lacks what follows"):
        list(execute(create_run(config, tmp_path)))


@pytest.mark.train
def test_a_head_that_is_a_convolution_is_replaced_by_a_linear_one(tmp_path):
    squeezenet = {"backbone": "squeezenet1_1", "weights": "none", "image_size": 64}
    run = trained_run(strategy="prototypes", **squeezenet)
    assert run.status == "finished"
    exported = export_run(run, "safetensors", tmp_path)
    assert load_export(exported.folder).network.head_layers[0].weight.shape == (3, 512)


@pytest.mark.train
def test_an_image_is_explained_by_the_stages_that_are_there():
    run = fitted_run()
    dataset = load_dataset(run.config.data)
    explained = explain(load_predictor(run), dataset.get_paths(dataset.table)[0], [0, 1])
    assert explained.layer in {"conv1", "layer1", STAGE}


@pytest.mark.train
def test_its_forecast_is_of_the_stages_that_are_used():
    whole = tiny_config(strategy="linear_probe")
    config = tiny_config(strategy="linear_probe", features_from=STAGE)
    dataset, book = load_dataset(config.data), SpeedBook()
    finish(calibrate([config], dataset, book))
    assert forecast_run(config, dataset, book).trainable_parameters == 3 * (48 + 1)
    assert book.get_speed(whole) is None  # another trunk
    ours, theirs = (
        sum(stage.parameter_count for stage in list_stages(one)) for one in (config, whole)
    )
    assert ours < theirs


def test_another_strategy_takes_no_stage_over_and_titles_name_it():
    config = tiny_config(strategy="linear_probe", features_from=STAGE)
    made = design_runs(config, ["linear_probe", "prototypes", "last_block", "from:layer4"], [0])
    assert {one.strategy: one.features_from for one in made} == {
        "linear_probe": STAGE,
        "prototypes": STAGE,
        "last_block": None,
        "custom": None,
    }
    titles = arm_titles([config, tiny_config(strategy="linear_probe")])
    assert titles == [f"Linear probe on {STAGE}", "Linear probe"]


def test_the_config_knows_which_strategies_fit_a_head():
    assert set(FITTED) == {name for name, one in STRATEGIES.items() if one.fits}
