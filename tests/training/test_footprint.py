"""Tests of a run's memory: in the program's own, and apart from that in its GPU."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch

from finetune_core.data.dataset import load_dataset
from finetune_core.models.network import network_stages
from finetune_core.training import events
from finetune_core.training.devices.speed_book import Speed, SpeedBook
from finetune_core.training.footprint import measure_footprint, record_saved_storages
from finetune_core.training.forecast.forecast import compute_forecast, forecast_run
from finetune_core.training.forecast.timing import calibrate
from finetune_core.training.loop import fit
from finetune_core.training.prepare import prepare
from finetune_core.training.step.optimizers import make_optimizer
from finetune_core.work import finish
from tests.drain import drain
from tests.factories import tiny_config

SPEED = Speed(
    trunk=0.01, step=0.02, forward=0.005, activation_bytes=1000, step_bytes=5_000_000, exact=0.0
)


@pytest.fixture
def config():
    return partial(tiny_config, batch_size=10, strategy="feature_extraction")


@pytest.fixture
def counter(gpu, monkeypatch):
    """Replace the GPU's allocator by a peak that grows with each look, and note the devices."""
    state = {"peak": 10**9, "asked": []}

    def reset(device):
        state["asked"].append(device)
        state["peak"] = 0

    def peak(device):
        state["asked"].append(device)
        state["peak"] += 1000
        return state["peak"]

    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", peak)
    return state


def ended(stream):
    return [event for event in stream if isinstance(event, events.EpochEnded)]


@pytest.mark.train
def test_on_cuda_each_run_counts_from_its_beginning_on_its_own_device(config, counter, tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        first, second = ended(fit(config(), tmp_path / name))
        assert 0 < first.device_bytes < second.device_bytes < 10**9
        assert first.memory_bytes > 0
    assert set(counter["asked"]) == {torch.device("cpu", 0)}, "what the fixture calls the GPU's"


@pytest.mark.train
def test_on_a_processor_there_is_no_other_memory(config, tmp_path):
    (tmp_path / "run").mkdir()
    assert {one.device_bytes for one in ended(fit(config(), tmp_path / "run"))} == {None}


@pytest.fixture
def stepped(config):
    """Return a job, its optimizer, and what a step has kept."""
    _, job = drain(prepare(config()))
    optimizer = make_optimizer(job.config, job.strategy, job.network.stages, job.network.model)
    _, inputs = next(job.training_inputs(job.training_batches(1), 1))
    with record_saved_storages(job.forward) as kept:
        job.forward(inputs).sum().backward()
    return job, optimizer, kept


def test_what_lies_on_the_gpu_is_not_counted_as_the_programs_memory(stepped, monkeypatch):
    job, optimizer, kept = stepped
    step = sum(kept.values())
    assert step > 0
    whole = measure_footprint(job, optimizer, None, step)
    on_gpu = replace(job, device=replace(job.device, kind="mps"))
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 1_000_000)
    seen = measure_footprint(on_gpu, optimizer, None, step)
    assert whole.device is None
    assert seen.device == 1_000_000 + step
    assert seen.host == whole.host - step
    elsewhere = copy.deepcopy(job.network.model).to("meta")
    lookups = [
        lookup.copy_to(torch.device("meta"), job.rows["train"]) for lookup in job.source.lookups
    ]
    moved = replace(
        on_gpu,
        network=replace(job.network, model=elsewhere),
        source=job.source.with_lookups(lookups),
    )
    optimizer.zero_grad()
    published = sum(tensor.nbytes for tensor in job.network.pretrained.state_dict().values())
    assert measure_footprint(moved, optimizer, None, step).host == published


def test_a_forecast_keeps_the_two_memories_apart(config, gpu):
    dataset = load_dataset(config().data)
    here = compute_forecast(config(device="cpu"), dataset, SPEED, 0.001)
    there = compute_forecast(config(), dataset, SPEED, 0.001)
    large = compute_forecast(config(), dataset, replace(SPEED, activation_bytes=10**9), 0.001)
    weights = 4 * sum(stage.parameter_count for stage in network_stages(config().backbone, 3))
    training = weights + 12 * there.trainable_parameters + SPEED.step_bytes
    pixels = here.memory_bytes - training - here.cache_bytes
    assert here.device_bytes is None
    assert (there.device_bytes, there.memory_bytes) == (
        training + there.cache_bytes,
        weights + pixels,
    )
    passing = compute_forecast(config(), dataset, replace(SPEED, forward_bytes=1_000_000), 0.001)
    assert passing.device_bytes == there.device_bytes - SPEED.step_bytes + 256 * 1_000_000
    assert (large.device_bytes, large.memory_bytes) == (
        training,
        weights + pixels + large.cache_bytes,
    ), "they are sent"


@pytest.mark.train
def test_calibration_counts_what_a_pass_without_gradients_takes_of_the_gpu(
    config, counter, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: -320_000 + 1000)
    book = SpeedBook()
    finish(calibrate([config()], load_dataset(config().data), book))
    assert book.get_speed(config()).forward_bytes == 32_000
    assert set(counter["asked"]) == {torch.device("cpu", 0)}
    finish(calibrate([config(device="cpu")], load_dataset(config().data), book))
    assert book.get_speed(config(device="cpu")).forward_bytes == 0


def test_a_run_on_a_gpu_carries_the_forecast_of_both(config, counter, tmp_path):
    dataset, book = load_dataset(config().data), SpeedBook()
    book.learn(config(), SPEED)
    book.learn_decoding(dataset.fingerprint, config().image_size, 0.001)
    (tmp_path / "run").mkdir()
    stream = fit(config(), tmp_path / "run")
    started = next(event for event in stream if isinstance(event, events.RunStarted))
    wanted = forecast_run(config(), dataset, book)
    assert wanted.device_bytes > 0
    assert started.forecast["device_bytes"] == wanted.device_bytes
    assert started.forecast["memory_bytes"] == wanted.memory_bytes
