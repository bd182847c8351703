"""Tests of runs that begin with a linear probe as their head, in every way a run can go."""

import pytest
import torch

from finetune_core.data.rowcache import CACHE
from finetune_core.errors import ConfigError
from finetune_core.runs.extend import extend_run
from finetune_core.runs.record import execute, reopen_run
from finetune_core.runs.store import RunStore, summarize_run
from finetune_core.training import events
from finetune_core.training.checkpoints.files import HEAD, LAST, checkpoint_path, load_tensors
from finetune_core.training.checkpoints.networks import load_best_network
from finetune_core.training.checkpoints.parents import make_averaged_config
from finetune_core.training.forecast.lr_finder import find_rate
from finetune_core.training.heads import probe_memo
from finetune_core.training.loop import StopRequested, fit
from finetune_core.training.prepare import check_config
from tests.drain import drain
from tests.factories import copy_run, shared_images, tiny_config, trained_run
from tests.training.equal import check_equal, check_identical
from tests.training.fits import ends_epoch, ends_step, fit_all, fit_until, only, stop_and_resume

SGD = {"optimizer": "sgd", "learning_rate": 1e-2, "batch_size": 10}
STILL = {"optimizer": "sgd", "learning_rate": 1e-9}
VIEWS = {"augmentation": "random_resized_crop", "views": 2}


def probing(**settings):
    return tiny_config(initial_head="probe", **settings)


def head_in(folder):
    return load_tensors(folder, HEAD)[0]


def check_probes_head(head, **settings):
    """Check that a head is that of a linear probe with these settings."""
    probe = trained_run(strategy="linear_probe", **settings)
    expected = load_best_network(probe.config, probe.run_dir)[0].model.state_dict()
    assert len(head) == 2
    for name, tensor in head.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"cache": "off"}, marks=pytest.mark.train),
        pytest.param(VIEWS, marks=pytest.mark.train),
        pytest.param(VIEWS | {"views": 0}, marks=pytest.mark.train),
        pytest.param({"strategy": "full", "l2_sp": 0.1, "mixup": 0.2}, marks=pytest.mark.train),
        pytest.param({"strategy": "lora", "ema": 0.9}, marks=pytest.mark.train),
        pytest.param({"strategy": "gradual_unfreezing", "epochs": 6}, marks=pytest.mark.train),
        pytest.param({"backbone": "timm/test_vit", "weights": "none"}, marks=pytest.mark.train),
    ],
    ids=str,
)
def test_it_is_that_of_a_linear_probe_and_a_run_that_stands_still_keeps_it(settings):
    run = trained_run(probing(**settings | STILL))
    network = {name: settings[name] for name in ("backbone", "weights") if name in settings}
    check_probes_head(head_in(run.run_dir), **network)
    last = load_best_network(run.config, run.run_dir)[0].model.state_dict()
    for name, tensor in head_in(run.run_dir).items():
        torch.testing.assert_close(last[name], tensor, rtol=1e-5, atol=1e-5)
    if not settings:
        probe = trained_run(strategy="linear_probe")
        assert summarize_run(run)["test_accuracy"] == summarize_run(probe)["test_accuracy"]


@pytest.mark.train
def test_a_strategy_that_has_a_head_already_or_no_steps_is_not_changed(tmp_path):
    kept = trained_run(from_run=str(trained_run().run_dir), initial_head="probe", epochs=1)
    scratch = trained_run(probing(strategy="from_scratch", epochs=1))
    fitted = trained_run(probing(strategy="linear_probe"))
    assert kept.started["head_kept"]
    for run in (kept, scratch, fitted):
        assert run.history.head_initialized is None
        assert not checkpoint_path(run.run_dir, HEAD).exists()


@pytest.mark.train
def test_a_new_head_on_an_earlier_runs_network_is_fitted_to_that_networks_features(tmp_path):
    parent, two = trained_run(), shared_images(red=14, green=14)
    start = {"from_run": str(parent.run_dir), "initial_head": "probe", "epochs": 1}
    run = trained_run(tiny_config(two, **start))
    probe = trained_run(tiny_config(two, **start | {"strategy": "linear_probe"}))
    expected = load_best_network(probe.config, probe.run_dir)[0].model.state_dict()
    for name, tensor in head_in(run.run_dir).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.train
@pytest.mark.parametrize("settings", [{}, VIEWS, {"backbone": "timm/test_vit", "weights": "none"}])
def test_cached_and_uncached_runs_are_equal(settings, tmp_path):
    CACHE.clear()
    config = probing(**SGD | settings)
    seen = fit_all(config, tmp_path / "cached")
    assert only(events.RunStarted, seen)[0].cache.where != "off"
    fit_all(config.model_copy(update={"cache": "off"}), tmp_path / "uncached")
    check_equal(tmp_path / "cached", tmp_path / "uncached")


def is_fitting(event):
    return isinstance(event, events.Progress) and event.phase == "choose"


@pytest.mark.train
@pytest.mark.parametrize(
    "is_last",
    [is_fitting, lambda event: isinstance(event, events.HeadInitialized), ends_step(1, 2)],
    ids=["while it is fitted", "once it is fitted", "after two steps"],
)
def test_a_resumed_run_is_the_one_that_was_never_stopped(is_last, tmp_path):
    config = probing(**SGD | VIEWS | {"ema": 0.9})
    fit_all(config, tmp_path / "whole")
    probe_memo.clear()
    again = stop_and_resume(config, tmp_path / "stopped", is_last)
    check_identical(tmp_path / "stopped", tmp_path / "whole")
    fitted_again = bool(only(events.HeadInitialized, again))
    assert fitted_again == (events.RunResumed(1, 2) not in again)


@pytest.mark.train
def test_a_run_that_has_a_checkpoint_is_not_fitted_again(tmp_path):
    config = probing(**SGD)
    seen, training = fit_until(config, tmp_path / "run", ends_epoch(1))
    training.throw(StopRequested())
    (told,) = only(events.HeadInitialized, seen)
    assert (told.images, told.features) == (30, 96)
    assert told.train_accuracy > 0.8
    assert checkpoint_path(tmp_path / "run", LAST).exists()
    checkpoint_path(tmp_path / "run", HEAD).unlink()
    assert not only(events.HeadInitialized, fit(config, tmp_path / "run", resume=True))
    fit_all(config, tmp_path / "whole")
    check_identical(tmp_path / "run", tmp_path / "whole")


@pytest.mark.train
def test_a_recorded_run_says_so_and_still_does_when_it_trains_further(tmp_path):
    run = trained_run(probing(**SGD))
    (line,) = [one for one in run.history.notable if one["event"] == "HeadInitialized"]
    assert line == run.history.head_initialized
    assert run.history.fitted is None
    shares = run.history.sum_seconds_by_part()
    assert shares["train"] >= line["seconds"] > 0
    store = RunStore(tmp_path)
    name = extend_run(store.load_run(copy_run(run.run_dir, tmp_path)), 3)
    again = list(execute(reopen_run(tmp_path / name)))
    assert not only(events.HeadInitialized, again)
    assert store.get_run(name).history.head_initialized == line
    check_identical(tmp_path / name, trained_run(probing(**SGD, epochs=3)).run_dir)
    assert head_in(tmp_path / name).keys() == head_in(run.run_dir).keys()


@pytest.mark.train
def test_seeds_that_share_the_seed_of_the_head_begin_with_one_head(tmp_path):
    runs = [trained_run(probing(epochs=1, head_seed=4, seed=seed)) for seed in (0, 1)]
    heads = [head_in(run.run_dir) for run in runs]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    folders = [run.run_dir for run in runs]
    assert make_averaged_config("soup", folders).initial_head == "probe"
    other = trained_run(epochs=1, head_seed=4, seed=2).run_dir
    with pytest.raises(ConfigError) as caught:
        make_averaged_config("soup", [*folders, other])
    assert f"its initial head was random, that of {folders[0].name} a linear" in str(caught.value)


@pytest.mark.train
def test_a_range_test_begins_with_the_fitted_head():
    settings = {"strategy": "feature_extraction"}
    _, at_random = drain(find_rate(tiny_config(**settings)))
    steps, probed = drain(find_rate(probing(**settings)))
    assert "choose" in {step.phase for step in steps}
    assert probed.losses[0] < at_random.losses[0] / 2


def test_a_head_that_is_no_linear_layer_is_refused_where_one_would_be_fitted():
    settings = {"backbone": "squeezenet1_0", "weights": "none", "image_size": 64}
    with pytest.raises(ConfigError, match=r"initial_head: the head of squeezenet1_0 is not one"):
        check_config(probing(**settings))
    check_config(probing(**settings, strategy="from_scratch"))
    check_config(tiny_config(**settings))
