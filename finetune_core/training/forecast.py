"""What a run will take, before it starts: a few steps are timed on this machine, and corrected by every run that ends."""

import json
import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from finetune_core import paths
from finetune_core.config import RunConfig
from finetune_core.data.dataset import Dataset
from finetune_core.data.decode import read_square
from finetune_core.data.pixels import stored_side
from finetune_core.data.splits import TEST, TRAIN, VAL
from finetune_core.data.threads import in_threads
from finetune_core.errors import ImageError
from finetune_core.files import write_bytes
from finetune_core.models.catalogue import backbone_info
from finetune_core.models.network import Network, build_network, network_stages
from finetune_core.models.partition import CannotSplit
from finetune_core.models.weights import PRETRAINED, RANDOM
from finetune_core.training.compute import place, train_step
from finetune_core.training.device import Device, choose_device
from finetune_core.training.footprint import kept_for_backward
from finetune_core.training.freezing import apply
from finetune_core.training.optimizers import make_optimizer
from finetune_core.training.stage_plan import Strategy, cut_index, plan, trainable_parameters
from finetune_core.training.strategies import STRATEGIES
from finetune_core.training.trunk import chosen_views, split_network, why_uncached
from finetune_core.work import Step, Work

_SECONDS = 0.4  # of timing for each number
_DECODED = 48  # images
_LARGEST_BATCH = 32  # what is timed must not be what runs out of memory
_FIXED_SECONDS = 0.8  # building the network, opening the data, the last checkpoint
_KNOWN_SPEEDS = 200
_PATIENCE = 10  # seconds, for others that write to the book


@dataclass(frozen=True)
class Speed:
    """Seconds an image, for one way to cut one network on this machine.

    Attributes:
        trunk: from pixels to the cut, without gradients.
        step: a training step from the cut on.
        forward: from the cut on, without gradients.
        activation_bytes: of one image at the cut; 0 without a trunk.
        step_bytes: what a step keeps for its backward pass, a whole batch.
        exact: from pixels to the logits in fp32, for the final evaluation; 0 where the run itself is in fp32.
    """

    trunk: float
    step: float
    forward: float
    activation_bytes: int
    step_bytes: int
    exact: float


@dataclass(frozen=True)
class Forecast:
    """What a run is expected to take: seconds and bytes."""

    strategy: str
    trainable_parameters: int
    seconds: float
    epoch_seconds: float
    memory_bytes: int
    cache_bytes: int


def forecast(config: RunConfig, dataset: Dataset, speed: Speed, decode_seconds: float, found: int = 0) -> Forecast:
    """The run's time and memory.

    Args:
        decode_seconds: to read one of the data set's images.
        found: how many of the activations are in the cache already.
    """
    stages = network_stages(config.backbone, len(dataset.classes))
    strategy = plan(config, stages)
    counts = dataset.table["split"].value_counts()
    train, val, test = (int(counts.get(split, 0)) for split in (TRAIN, VAL, TEST))
    train = max(1, round(train * config.train_fraction))
    cached = not why_uncached(config, cut_index(strategy)) and speed.activation_bytes > 0
    again = 0.0 if cached else speed.trunk
    # A run in bf16 looks at test images only in its final evaluation.
    final, in_trunk = ((val + test) * speed.exact, val) if speed.exact else (test * (speed.forward + again), val + test)
    rows = train * (chosen_views(config, cut_index(strategy)) or 1) + in_trunk
    epoch = train * (speed.step + again) + val * (speed.forward + again)
    missing = max(0, rows - found) if cached else 0
    decoded = 0 if cached and not missing else train + val + test
    once = decoded * decode_seconds + missing * speed.trunk + final
    trainable = trainable_parameters(strategy, stages)
    cache_bytes = rows * speed.activation_bytes if cached else 0
    pixels = (train + val + test) * 3 * stored_side(config.image_size) ** 2
    moments = 4 if config.optimizer == "sgd" else 8
    weights = 4 * sum(stage.parameter_count for stage in stages) + (4 + moments) * trainable
    return Forecast(
        config.strategy,
        trainable,
        _FIXED_SECONDS + once + config.epochs * epoch,
        epoch,
        weights + speed.step_bytes + pixels + cache_bytes,
        cache_bytes,
    )


def comparable(config: RunConfig) -> list[RunConfig]:
    """The config once with each classic strategy, and with its own."""
    names = [name for name, strategy in STRATEGIES.items() if strategy.classic]
    others = [config.model_copy(update={"strategy": name, "cut": None, "stage_rates": None}) for name in names]
    return others if config.strategy in names else [config, *others]


class SpeedBook:
    """The speeds known on this machine, in one file that every process reads and writes."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file or paths.home() / "speeds.json"

    def speed(self, config: RunConfig) -> Speed | None:
        found = self._read()["speeds"].get(_key(config))
        try:
            speed = Speed(**found) if found else None
            return speed if speed is None or all(math.isfinite(value) for value in asdict(speed).values()) else None
        except TypeError:  # written by another version
            return None

    def decode_seconds(self, dataset: Dataset, image_size: int) -> float | None:
        return self._read()["decode"].get(f"{dataset.fingerprint}-{image_size}")

    def knows(self, config: RunConfig, dataset: Dataset) -> bool:
        """Whether all of a forecast's numbers were measured."""
        speed = self.speed(config)
        return speed is not None and speed.step_bytes > 0 and self.decode_seconds(dataset, config.image_size) is not None

    def learn(self, config: RunConfig, speed: Speed) -> None:
        self._add("speeds", _key(config), asdict(speed))

    def learn_decoding(self, fingerprint: str, image_size: int, seconds: float) -> None:
        self._add("decode", f"{fingerprint}-{image_size}", seconds)

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            known = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none yet, or damaged: speeds can be measured again
            known = None
        known = known if isinstance(known, dict) else {}
        return {kind: known[kind] if isinstance(known.get(kind), dict) else {} for kind in ("speeds", "decode")}

    def _add(self, kind: str, key: str, value: Any) -> None:
        with suppress(OSError), FileLock(f"{self._file}.lock", timeout=_PATIENCE):  # a run is worth more than what it teaches
            known = self._read()
            known[kind].pop(key, None)
            known[kind][key] = value
            known[kind] = dict(list(known[kind].items())[-_KNOWN_SPEEDS:])
            write_bytes(self._file, json.dumps(known, indent=1).encode())


def calibrate(configs: Iterable[RunConfig], dataset: Dataset, book: SpeedBook) -> Work[None]:
    """Time what is not in the book yet: a few steps of each config, a few images of the data set.

    Yields:
        Steps that count configs.
    """
    configs = list(configs)
    for done, config in enumerate(configs):
        yield Step(done, len(configs))
        if book.decode_seconds(dataset, config.image_size) is None:
            book.learn_decoding(dataset.fingerprint, config.image_size, _time_decoding(dataset, config.image_size))
        if not book.knows(config, dataset):
            book.learn(config, _measure(config, len(dataset.classes)))
    yield Step(len(configs), len(configs))


def learn_from_run(
    book: SpeedBook, config: RunConfig, started: dict[str, Any], epochs: list[dict[str, Any]], finished: dict[str, Any]
) -> None:
    """Correct the book by what a run really took.

    Args:
        started, finished: the run's RunStarted and RunFinished rows.
        epochs: its EpochEnded rows; none where it was resumed after its last one.
    """
    cache, counts = started["cache"], started["counts"]
    known = book.speed(config)
    if known is None or not epochs:  # never calibrated: a run alone does not tell all that a forecast needs
        return
    step = float(np.median([row["train_seconds"] for row in epochs])) / counts[TRAIN]
    forward = float(np.median([row["val_seconds"] for row in epochs])) / counts[VAL]
    if cache["where"] == "off":
        # The whole network ran: what the book calls a step leaves the trunk out.
        learnt = replace(known, step=max(0.0, step - known.trunk), forward=max(0.0, forward - known.trunk))
        if known.exact:
            learnt = replace(learnt, exact=finished["evaluation_seconds"] / (counts[VAL] + counts.get(TEST, 0)))
    else:
        trunk = cache["seconds_per_row"] if cache["trunk_seconds"] and cache["seconds_per_row"] else known.trunk
        learnt = replace(
            known, step=step, forward=forward, trunk=trunk, activation_bytes=cache["bytes"] // max(1, cache["rows"])
        )
    book.learn(config, learnt)
    read = sum(counts.values())
    if started["decoded"] == read:
        book.learn_decoding(started["fingerprint"], config.image_size, started["decode_seconds"] / read)


def _key(config: RunConfig) -> str:
    device = choose_device(config.device, config.precision)
    strategy = config.strategy if config.strategy != "custom" else f"custom {config.cut} {config.stage_rates}"
    parts = (device.label, device.precision, config.backbone, strategy, config.image_size, config.batch_size, config.optimizer)
    return " | ".join(map(str, parts))


def _measure(config: RunConfig, classes: int) -> Speed:
    device = choose_device(config.device, config.precision)
    asked = config.starts_from
    weights = asked if asked != PRETRAINED or backbone_info(config.backbone).ready else RANDOM
    network = build_network(config.backbone, weights, classes, config.seed)
    strategy = plan(config, network.stages)
    place(network, strategy, device)
    batch = min(config.batch_size, _LARGEST_BATCH)
    # A generator of its own: a run in another thread may be using torch's.
    images = torch.randn(batch, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(config.seed))
    images = images.to(device.torch_device, memory_format=torch.channels_last)
    exact = 0.0
    if device.precision != "fp32":
        exact = _seconds_an_image(_without_gradients(network.model.eval(), images, device.exact), batch)
    cut = cut_index(strategy)
    try:
        trunk = split_network(network).part(None, cut) if cut else None
    except CannotSplit:
        trunk = None
    if trunk is None:
        return replace(_measure_tail(config, network, strategy, network.model, images, device, 0.0, 0), exact=exact)
    forward = _without_gradients(trunk.eval(), images, device)
    activation = forward()
    seconds = _seconds_an_image(forward, batch)
    tail = split_network(network).part(cut, None)
    size = activation[0].numel() * activation.element_size()
    return replace(_measure_tail(config, network, strategy, tail, activation, device, seconds, size), exact=exact)


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
    forward = _seconds_an_image(_without_gradients(tail.eval(), inputs, device), batch)
    apply(strategy, network.stages, network.model, config.epochs)
    optimizer = make_optimizer(config, strategy, network.stages, network.model)
    labels = torch.zeros(len(inputs), dtype=torch.long, device=inputs.device)

    def step() -> None:
        train_step(tail, inputs, labels, optimizer, device, config.seed)

    with kept_for_backward(tail) as kept:
        step()
    step_bytes = sum(kept.values()) * config.batch_size // batch
    return Speed(trunk_seconds, _seconds_an_image(step, batch), forward, activation_bytes, step_bytes, exact=0.0)


def _without_gradients(module: torch.nn.Module, inputs: torch.Tensor, device: Device) -> Callable[[], torch.Tensor]:
    def forward() -> torch.Tensor:
        with torch.no_grad(), device.autocast():
            return module(inputs)

    return forward


def _seconds_an_image(run: Callable[[], object], batch: int) -> float:
    run()
    times, began = [], time.perf_counter()
    while len(times) < 2 or time.perf_counter() - began < _SECONDS:
        at = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        elif torch.backends.mps.is_available():
            torch.mps.synchronize()
        times.append(time.perf_counter() - at)
    return float(np.median(times)) / batch


def _time_decoding(dataset: Dataset, image_size: int) -> float:
    sample = dataset.paths(dataset.table.sample(min(_DECODED, len(dataset.table)), random_state=0))

    def read(path: Path) -> None:
        try:
            read_square(path, stored_side(image_size))
        except ImageError:  # the data set's page names it
            return

    began = time.perf_counter()
    for _ in in_threads(read, sample):
        pass
    return (time.perf_counter() - began) / len(sample)
