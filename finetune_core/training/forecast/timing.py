"""Calibration of this machine's speed: a few steps are timed, a few images are read."""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune_core.config import RunConfig
from finetune_core.data.dataset import Dataset
from finetune_core.data.decode import Resize, read_square
from finetune_core.data.pixels import compute_resize_size
from finetune_core.data.splits import TRAIN
from finetune_core.data.threads import map_in_threads
from finetune_core.errors import ImageError
from finetune_core.models.catalogue import backbone_info
from finetune_core.models.network import Network, build_network
from finetune_core.models.partition import SplitError
from finetune_core.models.weights import PRETRAINED, RANDOM
from finetune_core.training.data_pipeline.trunk import split_network
from finetune_core.training.devices.device import Device, device_for_run
from finetune_core.training.devices.memory import measure_peak_bytes
from finetune_core.training.devices.speed_book import Speed, SpeedBook, conditions
from finetune_core.training.devices.turn import run_in_turn
from finetune_core.training.footprint import record_saved_storages
from finetune_core.training.step.compute import StepRule, place_network, train_step
from finetune_core.training.step.loss_scale import make_loss_scale
from finetune_core.training.step.optimizers import make_optimizer
from finetune_core.training.strategies.catalogue import count_epochs
from finetune_core.training.strategies.freezing import apply_strategy
from finetune_core.training.strategies.lora import make_low_rank
from finetune_core.training.strategies.stage_plan import (
    Strategy,
    cut_index,
    find_last_stage,
    list_stages,
    plan_strategy,
)
from finetune_core.work import Step, Work

_SECONDS = 0.4  # per measurement
_DECODED = 48  # images
# A fit without epochs is assumed to take as long as this many steps, until a run has shown its
# time.
_PASSES = 50
# Timing must not be what runs out of memory.
_LARGEST_BATCH = 32


def calibrate(
    configs: Iterable[RunConfig], dataset: Dataset, book: SpeedBook, *, again: bool = False
) -> Work[None]:
    """Time what is not in the book yet: a few steps of each config, a few images of the data set.

    Each config waits for its turn on the device.

    Args:
        configs: Configs to time.
        dataset: The data set of the configs.
        book: The book that receives the speeds.
        again: Time what is in the book, too.

    Yields:
        Steps that count configs. Steps of the phase ``device`` while one waits.
    """
    configs = list(configs)
    known_sides: set[int] = set()
    speeds: dict[tuple[Any, ...], Speed] = {}
    for done, config in enumerate(configs):
        step = Step(done, len(configs))
        yield step
        side = config.image_size
        if side not in known_sides and (again or book.get_decode_seconds(dataset, side) is None):
            book.learn_decoding(dataset.fingerprint, side, _time_decoding(dataset, side))
        known_sides.add(side)
        if again or not book.has_all_speeds(config, dataset):
            work = _make_work_key(config)
            if work not in speeds:
                kind = device_for_run(config).kind
                speeds[work] = yield from run_in_turn(
                    _measure_in_turn(config, len(dataset.classes), step), kind
                )
            book.learn(config, speeds[work])
    yield Step(len(configs), len(configs))


def _make_work_key(config: RunConfig) -> tuple[Any, ...]:
    """Return a key that is equal for configs whose last epoch computes the same.

    Their learning rates may differ.
    """
    strategy = plan_strategy(config, list_stages(config))
    passes = tuple((stage.frozen, stage.part, stage.batchnorm, stage.rank) for stage in strategy)
    return (*conditions(config), count_epochs(config) > 0, config.features_from, passes)


def _measure_in_turn(config: RunConfig, classes: int, step: Step) -> Work[Speed]:
    yield step  # the wait is over
    return _measure(config, classes)


def _measure(config: RunConfig, classes: int) -> Speed:
    device = device_for_run(config)
    # Other weights take the same computation.
    requested = PRETRAINED if config.earlier_run else config.initial_weights
    weights = (
        requested if requested != PRETRAINED or backbone_info(config.backbone).is_ready else RANDOM
    )
    network = build_network(
        config.backbone, weights, classes, config.seed, config.image_size, find_last_stage(config)
    )
    strategy = plan_strategy(config, network.stages)
    place_network(network, strategy, device)
    batch = min(config.batch_size, _LARGEST_BATCH)
    # A separate generator: a run in another thread may be using torch's.
    images = torch.randn(
        batch,
        3,
        config.image_size,
        config.image_size,
        generator=torch.Generator().manual_seed(config.seed),
    )
    images = images.to(device.torch_device, memory_format=device.layout)
    exact = 0.0
    if device.precision != "fp32":
        exact = _time_per_image(_make_forward(network.model.eval(), images, device.exact), batch)
    parts = _split(network, cut_index(strategy))
    if parts is None:
        return replace(
            _measure_tail(config, network, strategy, network.model, images, device, 0.0, 0),
            exact=exact,
        )
    trunk, tail = parts
    forward = _make_forward(trunk.eval(), images, device)
    forward_bytes = measure_peak_bytes(device, forward) // batch
    activation = forward()
    seconds = _time_per_image(forward, batch)
    size = activation[0].numel() * activation.element_size()
    speed = _measure_tail(config, network, strategy, tail, activation, device, seconds, size)
    return replace(speed, exact=exact, forward_bytes=max(forward_bytes, speed.forward_bytes))


def _split(network: Network, cut: int) -> tuple[torch.nn.Module, torch.nn.Module] | None:
    """Return trunk and tail of a network.

    It is None where nothing is frozen before what trains, or the network cannot be cut there.
    """
    if not cut:
        return None
    try:
        segments = split_network(network)
        return segments.part(None, cut), segments.part(cut, None)
    except SplitError:
        return None


def _measure_tail(
    config: RunConfig,
    network: Network,
    strategy: Strategy,
    tail: torch.nn.Module,
    inputs: torch.Tensor,
    device: Device,
    trunk_seconds: float,
    activation_bytes: int,
) -> Speed:
    batch = len(inputs)
    forward_pass = _make_forward(tail.eval(), inputs, device)
    forward = _time_per_image(forward_pass, batch)
    forward_bytes = measure_peak_bytes(device, forward_pass) // batch
    apply_strategy(strategy, network.stages, network.model, config.epochs)
    rule = StepRule(low_rank=make_low_rank(network, strategy, config.seed))
    optimizer = make_optimizer(config, strategy, network.stages, network.model, rule.low_rank)
    labels = torch.zeros(len(inputs), dtype=torch.long, device=inputs.device)

    scale = make_loss_scale(device)

    def step() -> None:
        train_step(tail, inputs, labels, optimizer, device, config.seed, rule, scale)

    with record_saved_storages(tail) as kept:
        step()
    step_bytes = sum(kept.values()) * config.batch_size // batch
    passes = 1 if count_epochs(config) else _PASSES
    return Speed(
        trunk_seconds,
        passes * _time_per_image(step, batch),
        forward,
        activation_bytes,
        step_bytes,
        0.0,
        forward_bytes,
    )


def _make_forward(
    module: torch.nn.Module, inputs: torch.Tensor, device: Device
) -> Callable[[], torch.Tensor]:
    def forward() -> torch.Tensor:
        with torch.no_grad(), device.autocast():
            output: torch.Tensor = module(inputs)
        return output

    return forward


def _time_per_image(run: Callable[[], object], batch: int) -> float:
    run()
    durations: list[float] = []
    start_time = time.perf_counter()
    while len(durations) < 2 or time.perf_counter() - start_time < _SECONDS:
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        elif torch.backends.mps.is_available():
            torch.mps.synchronize()
        durations.append(time.perf_counter() - start)
    return float(np.median(durations)) / batch


def _time_decoding(dataset: Dataset, image_size: int) -> float:
    table = dataset.table[dataset.table["split"] == TRAIN]
    sample = dataset.get_paths(table.sample(min(_DECODED, len(table)), random_state=0))

    def read(path: Path) -> None:
        try:
            read_square(path, Resize(compute_resize_size(image_size)))
        except ImageError:
            # The data set's page names the image.
            return

    start_time = time.perf_counter()
    for _ in map_in_threads(read, sample):
        pass
    return (time.perf_counter() - start_time) / len(sample)
