"""A run that starts from another one: its weights, its head where the classes match, and nothing lost when the other is gone."""

import shutil

import pytest
import torch

from finetune_core.config import make_config
from finetune_core.errors import ConfigError, FinetuneError, RunError
from finetune_core.evaluation.comparison.layer_diagnostics import known_layers, measure_layers
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.runs.log import lineage_in_words, log_line
from finetune_core.runs.record import create_run, execute, reopen_run
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import read_run, summary
from finetune_core.training.checkpoints import START, checkpoint_path, load_checkpoint
from finetune_core.training.events import EpochEnded
from finetune_core.training.lr_finder import find_rate
from finetune_core.training.networks import beginning_of, best_network
from finetune_core.training.strategies import STRATEGIES
from finetune_core.training.trunk import TrunkTables
from finetune_core.work import finish

QUICK = {
    "epochs": 1,
    "batch_size": 16,
    "image_size": 32,
    "learning_rate": 1e-3,
    "precision": "fp32",
}
CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def data(image_folder_once, tmp_path_factory):
    return image_folder_once(
        tmp_path_factory.mktemp("data") / "colours", dict.fromkeys(CLASSES, 14)
    )


def config_of(data, **settings):
    return make_config(QUICK | {"data": str(data)} | settings)


def trained(data, runs, **settings):
    reservation = create_run(config_of(data, **settings), runs)
    list(execute(reservation))
    return read_run(reservation.run_dir)


@pytest.fixture(scope="module")
def parent_once(home_of_shared_fixtures, data, tmp_path_factory):
    return trained(data, tmp_path_factory.mktemp("runs"), strategy="full", epochs=2)


@pytest.fixture
def parent(parent_once, tmp_path):
    return read_run(shutil.copytree(parent_once.run_dir, tmp_path / "parents" / parent_once.run_id))


def same(network, other, stages):
    """Whether two networks hold the same in all of these stages."""
    one, two = network.model.state_dict(), other.model.state_dict()
    return all(
        torch.equal(one[name], two[name])
        for stage in stages
        for name in (*stage.parameters, *stage.buffers)
    )


def test_frozen_stages_stay_as_the_earlier_run_left_them(data, parent, tmp_path):
    child = trained(
        data, tmp_path / "runs", strategy="feature_extraction", from_run=str(parent.run_dir)
    )
    before, _ = best_network(parent.config, parent.run_dir)
    after, info = best_network(child.config, child.run_dir)
    assert same(after, before, before.stages[:-1])
    assert not same(after, before, before.stages[-1:])
    assert child.history.end["frozen_tensors"] == sum(
        len(s.parameters) + len(s.buffers) for s in before.stages[:-1]
    )
    pretrained = read_run(parent.run_dir).started["weights_hash"]
    assert child.started["weights_hash"] == info.weights_hash != pretrained


def test_the_cache_knows_the_weights_that_the_trunk_was_computed_with(data, parent):
    device = load_predictor(parent).device
    plain = beginning_of(config_of(data, strategy="feature_extraction"), CLASSES).network
    first, second = (
        beginning_of(
            config_of(data, strategy=strategy, from_run=str(parent.run_dir)), CLASSES
        ).network
        for strategy in ("feature_extraction", "last_block")
    )
    names = [TrunkTables(network, device, 32).name(3) for network in (plain, first, second)]
    assert names[0] != names[1] == names[2]


def test_the_head_is_kept_with_its_outputs_in_the_order_of_the_new_classes(data, parent):
    config = config_of(data, from_run=str(parent.run_dir))
    before, info = best_network(parent.config, parent.run_dir)
    assert info.classes == CLASSES
    order = ("red", "blue", "green")
    found = beginning_of(config, order)
    assert found.head_kept
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = before.model(images)[:, [CLASSES.index(name) for name in order]]
    torch.testing.assert_close(found.network.model(images), expected)


def test_other_classes_get_a_new_head_on_the_same_weights(data, parent):
    config = config_of(data, from_run=str(parent.run_dir))
    found = beginning_of(config, ("red", "blue", "yellow", "white"))
    before, _ = best_network(parent.config, parent.run_dir)
    assert not found.head_kept
    assert same(found.network, before, before.stages[:-1])
    plain = beginning_of(config_of(data), ("red", "blue", "yellow", "white")).network
    assert same(found.network, plain, plain.stages[-1:])  # by the seed, as in any run


def test_a_run_is_whole_without_the_run_that_it_started_from(data, parent, tmp_path):
    child = trained(data, tmp_path / "runs", strategy="last_block", from_run=str(parent.run_dir))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = load_predictor(child).network.model(images)
    shutil.rmtree(parent.run_dir)
    moved = read_run(shutil.move(child.run_dir, tmp_path / "elsewhere"))
    assert torch.equal(load_predictor(moved).network.model(images), expected)
    finish(measure_layers([moved]))
    stages = known_layers(moved).stages
    assert [stage.name for stage in stages if stage.change > 0] == [
        row["name"] for row in moved.started["stages"] if row["trains"]
    ]


def test_it_resumes_without_it_to_the_same_weights(data, parent, tmp_path):
    settings = {"strategy": "last_block", "from_run": str(parent.run_dir), "epochs": 3}
    whole = trained(data, tmp_path / "whole", **settings)
    reservation = create_run(config_of(data, **settings), tmp_path / "runs")
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


def test_a_run_that_waits_does_not_need_it_any_more(data, parent, tmp_path):
    reservation = create_run(config_of(data, from_run=str(parent.run_dir)), tmp_path / "runs")
    shutil.rmtree(parent.run_dir)
    list(execute(reservation))
    assert read_run(reservation.run_dir).status == "finished"


@pytest.mark.parametrize(
    "strategy",
    [
        name
        for name in STRATEGIES
        if name not in ("custom", "full", "last_block", "feature_extraction")
    ],
)
def test_every_strategy_can_start_from_a_run(data, parent, tmp_path, strategy):
    child = trained(
        data, tmp_path / "runs", strategy=strategy, epochs=9, from_run=str(parent.run_dir)
    )
    assert child.status == "finished"
    kept = strategy not in ("from_scratch", "linear_probe", "prototypes", "nearest_neighbours")
    assert child.started["head_kept"] is kept
    # The control trains a network from scratch, whatever others start from.
    assert bool(lineage_in_words(child.started)) is (strategy != "from_scratch")
    assert load_predictor(child).classes == CLASSES


def test_a_chain_of_runs_tells_its_lineage(data, parent, tmp_path):
    probe = trained(data, tmp_path / "runs", strategy="linear_probe", from_run=str(parent.run_dir))
    last = trained(data, tmp_path / "runs", strategy="full", from_run=str(probe.run_dir))
    nearest, first = last.started["lineage"]
    assert (nearest["run"], nearest["epoch"], nearest["weights"]) == (probe.run_id, 0, "run")
    assert (first["run"], first["epoch"], first["weights"]) == (
        parent.run_id,
        parent.history.end["best_epoch"],
        "pretrained",
    )
    assert first["accuracy"] == pytest.approx(parent.history.end["val_accuracy"])
    words = lineage_in_words(last.started)
    assert words.startswith(
        f"Started from run {probe.run_id} (linear probe on colours, validation accuracy "
    )
    assert (
        f"), which started from run {parent.run_id} (full fine-tuning on colours, best epoch "
        in words
    )
    assert words.endswith("Its head was kept.")
    assert log_line(last.started).startswith(words)
    assert summary(last)["started_from"] == nearest
    assert summary(parent)["started_from"] is None


def test_a_learning_rate_is_found_for_a_run_that_has_no_folder_yet(data, parent):
    assert finish(
        find_rate(config_of(data, strategy="feature_extraction", from_run=str(parent.run_dir)))
    ).rates


def test_position_embeddings_are_fitted_to_another_size(data, tmp_path):
    settings = {"backbone": "timm/test_vit2", "weights": "none", "strategy": "full"}
    small = trained(data, tmp_path / "runs", **settings, **{"image_size": 64})
    child = trained(
        data,
        tmp_path / "runs",
        backbone="timm/test_vit2",
        image_size=96,
        strategy="feature_extraction",
        from_run=str(small.run_dir),
    )
    after, _ = best_network(child.config, child.run_dir)
    before, _ = best_network(small.config, small.run_dir)
    shapes = [network.model.state_dict()["pos_embed"].shape for network in (before, after)]
    assert shapes[0] != shapes[1]
    assert torch.equal(
        after.model.state_dict()["blocks.0.attn.qkv.weight"],
        before.model.state_dict()["blocks.0.attn.qkv.weight"],
    )
    assert child.started["head_kept"]


def refusal(data, runs, folder, **settings):
    with pytest.raises(ConfigError) as caught:
        create_run(config_of(data, from_run=str(folder), **settings), runs)
    assert not list(runs.glob("*"))
    return caught.value.problems


def test_a_run_that_cannot_be_started_from_is_refused_in_words(data, parent, tmp_path):
    runs = tmp_path / "runs"
    assert "there is no run in" in refusal(data, runs, tmp_path / "nowhere")["from_run"]
    problems = refusal(data, runs, parent.run_dir, backbone="resnet18")
    assert (
        problems["backbone"]
        == f"follows from the run to start from: {parent.run_id} has efficientnet_lite0, not resnet18"
    )
    (tmp_path / "link").symlink_to(parent.run_dir)
    assert "is a link" in refusal(data, runs, tmp_path / "link")["from_run"]
    checkpoint_path(parent.run_dir, "best").write_bytes(b"nothing")
    assert "best.safetensors" in refusal(data, runs, parent.run_dir)["from_run"]
    checkpoint_path(parent.run_dir, "best").unlink()
    assert "no 'best' checkpoint" in refusal(data, runs, parent.run_dir)["from_run"]
    (parent.run_dir / "config.json").write_text("[]")
    assert "holds no settings" in refusal(data, runs, parent.run_dir)["from_run"]


def test_nearest_neighbours_are_nothing_to_start_from(data, tmp_path):
    neighbours = trained(data, tmp_path / "parents", strategy="nearest_neighbours")
    assert (
        "nearest training images"
        in refusal(data, tmp_path / "runs", neighbours.run_dir)["from_run"]
    )


def test_a_run_and_a_file_to_start_from_exclude_each_other(data, parent):
    with pytest.raises(ConfigError, match="choose one of the two"):
        config_of(data, from_run=str(parent.run_dir), weights="none")


def test_weights_of_the_earlier_run_that_are_damaged_leave_no_folder(data, parent, tmp_path):
    path = checkpoint_path(parent.run_dir, "best")
    content = bytearray(path.read_bytes())
    content[-4:] = b"\x00\x00\xc0\x7f"  # NaN
    path.write_bytes(content)
    with pytest.raises(FinetuneError, match="not finite"):
        create_run(config_of(data, from_run=str(parent.run_dir)), tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("*"))


@pytest.mark.parametrize("way", ["missing", "cut", "changed"])
def test_what_a_run_kept_of_its_start_is_checked(data, parent, tmp_path, way):
    child = trained(
        data, tmp_path / "runs", strategy="feature_extraction", from_run=str(parent.run_dir)
    )
    path = checkpoint_path(child.run_dir, START)
    content = bytearray(path.read_bytes())
    if way == "missing":
        path.unlink()
    else:
        content[-1000:] = b"" if way == "cut" else bytes(1000)
        path.write_bytes(content)
    with pytest.raises(RunError, match=r"start\.safetensors"):
        load_predictor(child)
