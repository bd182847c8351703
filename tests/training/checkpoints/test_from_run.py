"""Tests of runs that start from another run's weights, with its head where classes match."""

import shutil

import pytest
import torch

from finetune_core.errors import ConfigError, FinetuneError, RunError
from finetune_core.evaluation.comparison.layer_diagnostics import load_layers, measure_layers
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.runs.log import describe_event, describe_lineage
from finetune_core.runs.record import create_run, execute, reopen_run
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import read_run, summarize_run
from finetune_core.training.checkpoints.files import START, checkpoint_path, load_checkpoint
from finetune_core.training.checkpoints.networks import build_initial_network, load_best_network
from finetune_core.training.data_pipeline.trunk import TrunkTables
from finetune_core.training.events import EpochEnded
from finetune_core.training.forecast.lr_finder import find_rate
from finetune_core.training.strategies.catalogue import STRATEGIES
from finetune_core.work import finish
from tests.factories import copy_run, tiny_config, train, trained_run

CLASSES = ("blue", "green", "red")
FITTED = ("linear_probe", "prototypes", "nearest_neighbours")


@pytest.fixture
def parent_once(home_of_shared_fixtures):
    return trained_run(strategy="full")


@pytest.fixture
def parent(parent_once, tmp_path):
    """Return a copy of the parent that a test may spoil."""
    return read_run(copy_run(parent_once.run_dir, tmp_path / "parents"))


def config_from(parent, **changes):
    return tiny_config(from_run=str(parent.run_dir), **{"epochs": 1} | changes)


def are_equal(network, other, stages):
    """Return whether two networks hold the same in all of these stages."""
    one, two = network.model.state_dict(), other.model.state_dict()
    return all(
        torch.equal(one[name], two[name])
        for stage in stages
        for name in (*stage.parameters, *stage.buffers)
    )


@pytest.mark.train
def test_frozen_stages_stay_as_the_earlier_run_left_them(parent_once):
    child = trained_run(config_from(parent_once, strategy="feature_extraction"))
    before, _ = load_best_network(parent_once.config, parent_once.run_dir)
    after, info = load_best_network(child.config, child.run_dir)
    assert are_equal(after, before, before.stages[:-1])
    assert not are_equal(after, before, before.stages[-1:])
    assert child.history.end["frozen_tensors"] == sum(
        len(s.parameters) + len(s.buffers) for s in before.stages[:-1]
    )
    pretrained = parent_once.started["weights_hash"]
    assert child.started["weights_hash"] == info.weights_hash != pretrained


def test_the_cache_knows_the_weights_that_the_trunk_was_computed_with(parent_once):
    device = load_predictor(parent_once).device
    configs = [
        tiny_config(strategy="feature_extraction"),
        config_from(parent_once, strategy="feature_extraction"),
        config_from(parent_once, strategy="last_block"),
    ]
    networks = [build_initial_network(config, CLASSES).network for config in configs]
    names = [TrunkTables(network, device, 32).get_name(3) for network in networks]
    assert names[0] != names[1] == names[2]


def test_the_head_is_kept_with_its_outputs_in_the_order_of_the_new_classes(parent_once):
    before, info = load_best_network(parent_once.config, parent_once.run_dir)
    assert info.classes == CLASSES
    order = ("red", "blue", "green")
    found = build_initial_network(config_from(parent_once), order)
    assert found.head_kept
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = before.model(images)[:, [CLASSES.index(name) for name in order]]
    torch.testing.assert_close(found.network.model(images), expected)


def test_other_classes_get_a_new_head_on_the_same_weights(parent_once):
    classes = ("red", "blue", "yellow", "white")
    found = build_initial_network(config_from(parent_once), classes)
    before, _ = load_best_network(parent_once.config, parent_once.run_dir)
    assert not found.head_kept
    assert are_equal(found.network, before, before.stages[:-1])
    plain = build_initial_network(tiny_config(), classes).network
    assert are_equal(found.network, plain, plain.stages[-1:])  # by the seed, as in any run


@pytest.mark.train
def test_a_run_waits_trains_and_predicts_without_the_run_that_it_started_from(parent, tmp_path):
    reservation = create_run(config_from(parent), tmp_path / "runs")
    shutil.rmtree(parent.run_dir)
    list(execute(reservation))
    child = read_run(reservation.run_dir)
    assert child.status == "finished"
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = load_predictor(child).network.model(images)
    moved = read_run(shutil.move(child.run_dir, tmp_path / "elsewhere"))
    assert torch.equal(load_predictor(moved).network.model(images), expected)
    finish(measure_layers([moved]))
    stages = load_layers(moved).stages
    assert [stage.name for stage in stages if stage.change > 0] == [
        row["name"] for row in moved.started["stages"] if row["trains"]
    ]


@pytest.mark.train
def test_a_run_resumes_to_the_same_weights_without_the_run_that_it_started_from(parent, tmp_path):
    config = config_from(parent, epochs=2)
    whole = train(config, tmp_path / "whole")
    reservation = create_run(config, tmp_path / "runs")
    for event in execute(reservation):
        if isinstance(event, EpochEnded) and event.epoch == 1:
            request_stop(reservation.run_dir)
    assert read_run(reservation.run_dir).status == "stopped"
    shutil.rmtree(parent.run_dir)
    list(execute(reopen_run(reservation.run_dir)))
    resumed = read_run(reservation.run_dir)
    assert resumed.status == "finished"
    ours, theirs = (load_checkpoint(run.run_dir, "best")[0] for run in (resumed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def strategies():
    """Return one strategy of each kind. The others take the same way through the code."""
    few = ("lora", "from_scratch", "prototypes")
    rest = [name for name in STRATEGIES if name not in (*few, "custom", "last_block")]
    return [*few, *(pytest.param(name, marks=pytest.mark.exhaustive) for name in rest)]


@pytest.mark.train
@pytest.mark.parametrize("strategy", strategies())
def test_every_strategy_can_start_from_a_run(parent_once, tmp_path, strategy):
    epochs = {"linear_probe_then_full": 2, "gradual_unfreezing": 6}.get(strategy, 1)
    child = train(config_from(parent_once, strategy=strategy, epochs=epochs), tmp_path)
    assert child.status == "finished"
    assert child.started["head_kept"] is (strategy not in ("from_scratch", *FITTED))
    # The control trains a network from scratch, whatever others start from.
    assert bool(describe_lineage(child.started)) is (strategy != "from_scratch")
    assert load_predictor(child).classes == CLASSES


@pytest.mark.train
def test_a_chain_of_runs_tells_its_lineage(parent_once):
    probe = trained_run(config_from(parent_once, strategy="linear_probe"))
    last = trained_run(config_from(probe, strategy="full"))
    nearest, first = last.started["lineage"]
    best_epoch = parent_once.history.end["best_epoch"]
    assert [nearest[key] for key in ("run", "epoch", "weights")] == [probe.run_id, 0, "run"]
    assert [first[key] for key in ("run", "epoch")] == [parent_once.run_id, best_epoch]
    assert first["weights"] == "file"
    assert first["accuracy"] == pytest.approx(parent_once.history.end["val_accuracy"])
    words = describe_lineage(last.started)
    data = parent_once.config.data.rpartition("/")[2]
    beginning = f"Started from run {probe.run_id} (linear probe on {data}, validation accuracy "
    assert words.startswith(beginning)
    earlier = f"), which started from run {parent_once.run_id} (full fine-tuning on {data}, best "
    assert earlier in words
    assert words.endswith("Its head was kept.")
    assert describe_event(last.started).startswith(words)
    assert summarize_run(last)["started_from"] == nearest
    assert summarize_run(parent_once)["started_from"] is None


@pytest.mark.train
def test_a_learning_rate_is_found_for_a_run_that_has_no_folder_yet(parent_once):
    assert finish(find_rate(config_from(parent_once, strategy="feature_extraction"))).rates


@pytest.mark.train
def test_position_embeddings_are_fitted_to_another_size():
    vit = {"backbone": "timm/test_vit2", "weights": "none", "strategy": "full", "epochs": 1}
    small = trained_run(**vit, image_size=64)
    settings = {"backbone": "timm/test_vit2", "strategy": "feature_extraction"}
    child = trained_run(config_from(small, **settings, image_size=96))
    before, after = (
        load_best_network(run.config, run.run_dir)[0].model.state_dict() for run in (small, child)
    )
    assert before["pos_embed"].shape != after["pos_embed"].shape
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(after[name], before[name])
    assert child.started["head_kept"]


def refusal(runs, folder, **settings):
    with pytest.raises(ConfigError) as caught:
        create_run(tiny_config(from_run=str(folder), **settings), runs)
    assert not list(runs.glob("*"))
    return caught.value.problems


def test_a_run_that_cannot_be_started_from_is_refused_in_words(parent, tmp_path):
    runs, folder = tmp_path / "runs", parent.run_dir
    assert "there is no run in" in refusal(runs, tmp_path / "nowhere")["from_run"]
    assert refusal(runs, folder, backbone="resnet18")["backbone"] == (
        f"follows from the run to start from: {parent.run_id} has timm/test_resnet, not resnet18"
    )
    (tmp_path / "link").symlink_to(folder)
    assert "is a link" in refusal(runs, tmp_path / "link")["from_run"]
    neighbours = trained_run(strategy="nearest_neighbours").run_dir
    assert "nearest training images" in refusal(runs, neighbours)["from_run"]
    with pytest.raises(ConfigError, match="choose one of the two"):
        tiny_config(from_run=str(folder), weights="none")
    path = checkpoint_path(folder, "best")
    content = bytearray(path.read_bytes())
    content[-4:] = b"\x00\x00\xc0\x7f"  # NaN
    path.write_bytes(content)
    with pytest.raises(FinetuneError, match="not finite"):
        create_run(config_from(parent), runs)
    assert not list(runs.glob("*"))
    path.write_bytes(b"nothing")
    assert "best.safetensors" in refusal(runs, folder)["from_run"]
    path.unlink()
    assert "no 'best' checkpoint" in refusal(runs, folder)["from_run"]
    (folder / "config.json").write_text("[]")
    assert "holds no settings" in refusal(runs, folder)["from_run"]


@pytest.mark.parametrize("way", ["missing", "cut", "changed"])
def test_weights_that_a_run_kept_of_its_start_are_checked(parent_once, tmp_path, way):
    child = trained_run(config_from(parent_once, strategy="feature_extraction"))
    child = read_run(copy_run(child.run_dir, tmp_path))
    path = checkpoint_path(child.run_dir, START)
    content = bytearray(path.read_bytes())
    if way == "missing":
        path.unlink()
    else:
        content[-1000:] = b"" if way == "cut" else bytes(1000)
        path.write_bytes(content)
    with pytest.raises(RunError, match=r"start\.safetensors"):
        load_predictor(child)
