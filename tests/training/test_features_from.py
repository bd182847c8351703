"""Heads that are fitted to the features of an earlier stage: the network ends there, and is a run's network like any other."""

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
from finetune_core.runs.design import design
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.store import read_run, summary
from finetune_core.training import events
from finetune_core.training.forecast import expected
from finetune_core.training.networks import best_network
from finetune_core.training.predictions import load_predictions
from finetune_core.training.speed_book import SpeedBook
from finetune_core.training.stage_plan import stages_of
from finetune_core.training.strategies import STRATEGIES
from finetune_core.training.timing import calibrate
from finetune_core.training.trunk import TrunkTables
from finetune_core.work import finish


@pytest.fixture
def fitted_run(colour_config, tmp_path):
    """Trains a run on the features of a stage; returns its folder and its events."""

    def train(strategy="linear_probe", features_from="block3", **settings):
        config = colour_config(strategy=strategy, features_from=features_from, **settings)
        reservation = create_run(config, tmp_path / "runs")
        return reservation.run_dir, list(execute(reservation))

    return train


@pytest.mark.parametrize("strategy", FITTED)
def test_the_network_ends_after_that_stage_and_is_evaluated(fitted_run, strategy):
    folder, seen = fitted_run(strategy)
    assert isinstance(seen[-1], events.RunFinished)
    run = read_run(folder)
    names = [stage["name"] for stage in run.started["stages"]]
    assert names == ["stem", "block1", "block2", "block3", "head"]
    network, _ = best_network(run.config, folder)
    assert [stage.name for stage in network.stages] == names
    row = summary(run)
    assert row["frozen_tensors"] > 50
    assert row["total_parameters"] < 200_000
    assert row["val_accuracy"] > 0.8
    assert evaluation(run).accuracy == row["test_accuracy"]
    table = load_predictions(folder)
    assert (np.stack(table["logits"].tolist()).argmax(1) == table["label"]).mean() > 0.8


def test_without_the_cache_it_is_the_same(fitted_run):
    heads = []
    for cache in ("auto", "off"):
        folder, seen = fitted_run(cache=cache)
        assert (
            next(event for event in seen if isinstance(event, events.RunStarted)).cache.where
            == "off"
        ) == (cache == "off")
        network, _ = best_network(read_run(folder).config, folder)
        heads.append(network.head_layers[0].weight)
    torch.testing.assert_close(heads[0], heads[1], atol=1e-3, rtol=1e-2)


def test_what_is_cached_of_it_is_not_taken_for_the_whole_networks(fitted_run, monkeypatch):
    tables = []
    real = TrunkTables.name
    monkeypatch.setattr(
        TrunkTables,
        "name",
        lambda self, cut, view="": tables.append((cut, name := real(self, cut, view))) or name,
    )
    fitted_run()
    ended = set(tables)
    tables.clear()
    whole = [
        one for one in fitted_run("linear_probe", None)[1] if isinstance(one, events.HeadFitted)
    ]
    assert whole[0].features == 1280
    shared = {cut for cut, _ in ended & set(tables)}
    assert shared >= {1, 2, 3}, "of stages before the last, the tables are the same"
    assert 4 not in shared


@pytest.mark.parametrize("form", ["safetensors", "onnx", "torch_export"])
def test_it_is_exported_like_any_other(fitted_run, form):
    run = read_run(fitted_run()[0])
    exported = export_run(run, form)
    assert exported.files
    if form == "safetensors":
        images = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(
                load_export(exported.folder).network.model(images),
                load_predictor(run).network.model(images),
            )
    card = (exported.folder / "README.md").read_text()
    assert "up to block3, its features averaged over the image" in card
    assert ("only Thaw can read these weights" in card) == (form == "safetensors")


def test_what_does_not_fit_is_refused_before_the_start(colour_config, tmp_path):
    with pytest.raises(
        ConfigError,
        match="features_from: belongs to linear_probe, prototypes, nearest_neighbours, not to full",
    ):
        make_config({"data": "x", "strategy": "full", "features_from": "block3"})
    with pytest.raises(ConfigError, match="there is no stage 'block9'"):
        list(
            execute(
                create_run(
                    colour_config(strategy="linear_probe", features_from="block9"),
                    tmp_path / "runs",
                )
            )
        )


def test_a_head_that_is_a_convolution_is_replaced_by_a_linear_one(fitted_run):
    folder, seen = fitted_run(
        features_from=None, backbone="squeezenet1_1", weights="none", image_size=64
    )
    assert isinstance(seen[-1], events.RunFinished)
    assert next(event for event in seen if isinstance(event, events.HeadFitted)).features == 512
    assert export_run(read_run(folder), "onnx").files


def test_an_image_is_explained_by_the_stages_that_are_there(fitted_run):
    run = read_run(fitted_run()[0])
    predictor = load_predictor(run)
    image = load_dataset(run.config.data).paths(load_dataset(run.config.data).table)[0]
    explained = explain(predictor, image, [0, 1])
    assert explained.layer in {"stem", "block1", "block2", "block3"}


def test_nothing_else_can_start_from_it(fitted_run, colour_config, tmp_path):
    folder, _ = fitted_run()
    config = colour_config(strategy="last_block", from_run=str(folder))
    with pytest.raises(ConfigError, match="ends after block3 and lacks what follows"):
        list(execute(create_run(config, tmp_path / "runs")))


def test_its_forecast_is_of_the_stages_that_are_used(colour_config):
    config = colour_config(strategy="linear_probe", features_from="block3")
    whole, dataset = colour_config(strategy="linear_probe"), load_dataset(config.data)
    book = SpeedBook()
    finish(calibrate([config, whole], dataset, book))
    assert expected(config, dataset, book).trainable_parameters == 3 * (40 + 1)
    assert book.speed(config).trunk < book.speed(whole).trunk
    assert sum(stage.parameter_count for stage in stages_of(config)) < sum(
        stage.parameter_count for stage in stages_of(whole)
    )


def test_another_strategy_takes_no_stage_over_and_titles_name_it(colour_config):
    config = colour_config(strategy="linear_probe", features_from="block3")
    made = design(config, ["linear_probe", "prototypes", "last_block", "from:block5"], [0])
    assert {one.strategy: one.features_from for one in made} == {
        "linear_probe": "block3",
        "prototypes": "block3",
        "last_block": None,
        "custom": None,
    }
    assert arm_titles([config, colour_config(strategy="linear_probe")]) == [
        "Linear probe on block3",
        "Linear probe",
    ]


def test_the_config_knows_which_strategies_fit_a_head():
    assert set(FITTED) == {name for name, one in STRATEGIES.items() if one.fits}
