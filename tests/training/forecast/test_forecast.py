import json
from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
import torch

from finetune_core.config import make_config
from finetune_core.data.dataset import load_dataset
from finetune_core.errors import TrainingError
from finetune_core.training import events
from finetune_core.training.devices.speed_book import Speed, SpeedBook
from finetune_core.training.forecast import timing
from finetune_core.training.forecast.forecast import (
    compute_forecast,
    forecast_run,
    list_comparable_configs,
)
from finetune_core.training.forecast.timing import calibrate
from finetune_core.training.strategies.catalogue import STRATEGIES
from finetune_core.training.strategies.stage_plan import list_stages
from finetune_core.work import Step
from tests.factories import shared_images, tiny_config
from tests.training.fits import only, record_run

SPEED = Speed(
    trunk=0.01, step=0.02, forward=0.005, activation_bytes=1000, step_bytes=5_000_000, exact=0.0
)


@pytest.fixture
def folder():
    return shared_images(red=20, blue=20)  # 28 to train on, 6 to validate, 6 to test


@pytest.fixture
def config(folder):
    return partial(tiny_config, folder, batch_size=8, epochs=4)


@pytest.mark.parametrize(
    ("settings", "epoch", "once", "cached"),
    [
        ({}, 28 * 0.02 + 6 * 0.005, 40 * 0.011 + 6 * 0.005, 40),
        ({"cache": "off"}, 28 * 0.03 + 6 * 0.015, None, 0),
        # the trunk's output of test images is not needed in bf16, and the end is in fp32
        ({"precision": "bf16"}, 28 * 0.02 + 6 * 0.005, 40 * 0.001 + 34 * 0.01 + 12 * 0.03, 34),
        ({"augmentation": "flips", "views": 3}, None, None, 28 * 3 + 12),
        # an initial head is fitted to the images as they are
        (
            {"initial_head": "probe"},
            28 * 0.02 + 6 * 0.005,
            40 * 0.011 + 6 * 0.005 + 28 * 0.005,
            40,
        ),
        ({"augmentation": "flips", "views": 3, "initial_head": "probe"}, None, None, 28 * 4 + 12),
        # a fit is paid for once, and there are no epochs
        ({"strategy": "linear_probe"}, 0, 40 * 0.011 + 12 * 0.005 + 28 * 0.02, 40),
    ],
    ids=["cached", "uncached", "bf16", "views", "probe first", "views, probe first", "fitted"],
)
def test_a_run_pays_for_its_epochs_and_once_for_its_trunk(
    native_bf16, config, folder, settings, epoch, once, cached
):
    speed = replace(SPEED, exact=0.03 if "precision" in settings else 0.0)
    estimate = compute_forecast(config(**settings), load_dataset(folder), speed, 0.001)
    assert estimate.cache_bytes == cached * 1000
    assert epoch is None or estimate.epoch_seconds == pytest.approx(epoch)
    assert once is None or estimate.seconds == pytest.approx(0.8 + 4 * (epoch or 0) + once)


def test_what_is_cached_already_costs_nothing(config, folder):
    dataset = load_dataset(folder)
    fresh, found = (
        compute_forecast(config(), dataset, SPEED, 0.001, found=n).seconds for n in (0, 40)
    )
    assert fresh - found == pytest.approx(40 * 0.011)


def test_stages_that_are_not_thawed_yet_cost_no_backward_pass(config, folder):
    dataset = load_dataset(folder)
    full, probe_first = (
        compute_forecast(
            config(strategy=name, thaw_every=1),
            dataset,
            replace(SPEED, activation_bytes=0, trunk=0.0),
            0.001,
        )
        for name in ("full", "linear_probe_then_full")
    )
    stages = len(list_stages(config()))
    # the first of four epochs, but for the head
    spared = 28 * (SPEED.step - SPEED.forward) * (stages - 1) / stages
    assert full.seconds - probe_first.seconds == pytest.approx(spared)


def test_nothing_is_expected_before_all_of_it_was_measured(config, folder):
    dataset, book = load_dataset(folder), SpeedBook()
    assert forecast_run(config(), dataset, book) is None
    book.learn(config(), SPEED)
    assert forecast_run(config(), dataset, book) is None
    book.learn_decoding(dataset.fingerprint, 32, 0.001)
    assert forecast_run(config(), dataset, book) == compute_forecast(
        config(), dataset, SPEED, 0.001
    )


def test_nothing_is_expected_of_a_device_or_a_precision_that_is_not_here(
    config, folder, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for elsewhere in ({"precision": "bf16"}, {"device": "cuda"}):
        assert forecast_run(config(**elsewhere), load_dataset(folder), SpeedBook()) is None


def test_every_strategy_that_could_run_is_comparable():
    usual, own = (
        make_config({"data": "x"}),
        make_config({"data": "x", "strategy": "custom", "cut": "block5"}),
    )
    assert [one.strategy for one in list_comparable_configs(usual)] == [
        name for name in STRATEGIES if name != "custom"
    ]
    assert [one.strategy for one in list_comparable_configs(own)] == list(STRATEGIES)
    assert [one.cut for one in list_comparable_configs(own)] == [None] * (len(STRATEGIES) - 1) + [
        "block5"
    ]
    short = make_config({"data": "x", "epochs": 1})
    assert STRATEGIES.keys() - {one.strategy for one in list_comparable_configs(short)} == {
        "linear_probe_then_full",
        "gradual_unfreezing",
        "custom",
    }


@pytest.mark.train
def test_calibration_fills_the_book_once_and_again_where_it_is_asked_to(config, folder):
    dataset, book = load_dataset(folder), SpeedBook()
    compared = [config(strategy=name) for name in ("feature_extraction", "last_block", "full")]
    steps = list(calibrate(compared, dataset, book))
    assert steps[-1] == Step(3, 3)
    before = [SpeedBook().get_speed(one) for one in compared]
    assert all(speed.step > 0 for speed in before)
    assert before[-1].trunk == 0
    assert before[0].activation_bytes == 96 * 4
    reading = book.get_decode_seconds(dataset, 32)
    list(calibrate(compared, dataset, book))
    assert (
        [SpeedBook().get_speed(one) for one in compared],
        book.get_decode_seconds(dataset, 32),
    ) == (
        before,
        reading,
    )
    list(calibrate(compared, dataset, book, again=True))
    assert all(book.get_speed(one) != old for one, old in zip(compared, before, strict=True))
    assert book.get_decode_seconds(dataset, 32) != reading


@pytest.mark.train
def test_settings_that_compute_the_same_are_timed_and_traced_once(config, folder, monkeypatch):
    traced, really = [], timing.split_network
    monkeypatch.setattr(
        timing, "split_network", lambda network: traced.append(network) or really(network)
    )
    alike = [config(strategy=name) for name in ("full", "from_scratch", "discriminative")]
    other, before = config(strategy="last_block"), torch.get_rng_state()
    list(calibrate([*alike, other], load_dataset(folder), SpeedBook()))
    assert len({SpeedBook().get_speed(one) for one in alike}) == 1
    assert SpeedBook().get_speed(other) != SpeedBook().get_speed(alike[0])
    assert len(traced) == 1  # for a trunk and its tail
    assert torch.equal(torch.get_rng_state(), before)  # which a run may be drawing from


@pytest.mark.train
def test_a_fit_without_epochs_is_timed_as_many_steps_of_the_head(config, folder, monkeypatch):
    monkeypatch.setattr(timing, "_PASSES", 10**9)  # no timing is so far off
    head, probe = (config(strategy=name) for name in ("feature_extraction", "linear_probe"))
    list(calibrate([head, probe], load_dataset(folder), SpeedBook()))
    assert SpeedBook().get_speed(probe).step > 1000 * SpeedBook().get_speed(head).step


@pytest.mark.train
def test_a_run_corrects_the_book_and_carries_its_forecast(config, tmp_path):
    def train(seed):
        _, found = record_run(config(seed=seed), tmp_path / "runs")
        return only(events.RunStarted, found)[0]

    assert train(0).forecast is None
    assert SpeedBook().get_speed(config()) is None
    book = SpeedBook()
    book.learn(config(), SPEED)
    book.learn_decoding(load_dataset(config().data).fingerprint, 32, 0.001)
    second = train(1)
    assert second.forecast["cache_bytes"] == 40_000
    assert second.forecast["seconds"] == pytest.approx(
        0.8 + 4 * (28 * 0.02 + 6 * 0.005) + 6 * 0.005
    )
    assert second.cache.found == 40
    learnt = book.get_speed(config())
    assert learnt.step != SPEED.step
    assert (learnt.trunk, learnt.step_bytes) == (SPEED.trunk, SPEED.step_bytes)


@pytest.mark.train
def test_only_epochs_in_which_all_of_it_trains_correct_the_book(config, tmp_path):
    warming = config(strategy="linear_probe_then_full", thaw_every=1, epochs=2)
    book = SpeedBook()
    book.learn(warming, SPEED)
    book.learn_decoding(load_dataset(warming.data).fingerprint, 32, 0.001)
    _, found = record_run(warming, tmp_path)
    last = only(events.EpochEnded, found)[-1].to_json()
    taken = last["train_seconds"] / 28 - SPEED.trunk
    assert book.get_speed(warming).step == pytest.approx(max(0.0, taken))


def test_a_book_is_parsed_once_until_it_changes(config, folder, monkeypatch):
    dataset, book, parsed = load_dataset(folder), SpeedBook(), []
    book.learn(config(), SPEED)
    book.learn_decoding(dataset.fingerprint, 32, 0.001)
    really = json.loads
    monkeypatch.setattr(
        "finetune_core.training.devices.speed_book.json.loads",
        lambda text: parsed.append(text) or really(text),
    )
    assert [
        forecast_run(one, dataset, SpeedBook()) is None
        for one in [config(), config(batch_size=4)] * 10
    ] == [False, True] * 10
    assert len(parsed) == 1
    book.learn(config(), replace(SPEED, step=9.0))
    assert SpeedBook().get_speed(config()).step == 9.0
    assert len(parsed) == 2


def test_the_images_of_each_split_are_counted_once(config, folder, monkeypatch):
    dataset, counted = load_dataset(folder), []
    really = pd.Series.value_counts
    monkeypatch.setattr(
        pd.Series,
        "value_counts",
        lambda self, *more, **named: counted.append(self) or really(self, *more, **named),
    )
    for _ in range(3):
        compute_forecast(config(), dataset, SPEED, 0.001)
    assert len(counted) == 1


def test_a_book_that_cannot_be_written_costs_no_run(config, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("read-only")

    monkeypatch.setattr("finetune_core.training.devices.speed_book.write_bytes", refuse)
    _, found = record_run(config(epochs=1), tmp_path)
    assert isinstance(found[-1], events.RunFinished)


@pytest.mark.train
def test_a_batch_that_cannot_train_is_refused_in_words(config, folder):
    with pytest.raises(TrainingError, match="batch size of 2"):
        list(calibrate([config(batch_size=1)], load_dataset(folder), SpeedBook()))


@pytest.mark.parametrize("cache", ["auto", "off"])
def test_a_run_without_epochs_corrects_what_a_fit_takes(config, tmp_path, cache):
    settings, book = config(strategy="prototypes", cache=cache), SpeedBook()
    book.learn(settings, SPEED)
    _, seen = record_run(settings, tmp_path)
    (fitted,) = only(events.HeadFitted, seen)
    learnt = book.get_speed(settings)
    assert learnt.step == pytest.approx(
        max(0.0, fitted.seconds / 28 - (SPEED.trunk if cache == "off" else 0))
    )
    assert learnt.forward == SPEED.forward
