"""The speeds known on this machine: measured before a run, corrected by every run that ends."""

import json
import math
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from finetune_core import paths
from finetune_core.config import RunConfig
from finetune_core.data.dataset import Dataset
from finetune_core.data.splits import TEST, TRAIN, VAL
from finetune_core.errors import ConfigError
from finetune_core.files import Stamp, file_stamp, read_regular, write_bytes
from finetune_core.training.devices.device import device_for_run

_KNOWN_SPEEDS = 200
_LARGEST = 2**24  # bytes of the book
_PATIENCE = 10  # seconds to wait for other writers


@dataclass(frozen=True)
class Speed:
    """Seconds per image, for one way to cut one network on this machine.

    Attributes:
        trunk: From pixels to the cut, without gradients.
        step: A training step from the cut on. Without epochs, the whole fit.
        forward: From the cut on, without gradients.
        activation_bytes: Size of one image's activations at the cut. 0 without a trunk.
        step_bytes: What a step keeps for its backward pass, for a whole batch.
        exact: From pixels to the logits in fp32, for the final evaluation. 0 where the run itself
            is in fp32.
        forward_bytes: GPU memory that an image takes in a pass without gradients. 0 where it is not
            counted.
    """

    trunk: float
    step: float
    forward: float
    activation_bytes: int
    step_bytes: int
    exact: float
    forward_bytes: int = 0


@dataclass(frozen=True)
class Compilation:
    """Cost and gain of compiling one part of a network on this machine.

    Attributes:
        seconds: Time until the package was ready, beside the work that it was made for.
        saved: Share of the eager pass's time that is saved. 0 where the part could not be compiled.
    """

    seconds: float
    saved: float


# By ``benchmarks/peak.py --without compiled`` on two cores.
_USUAL = Compilation(seconds=40.0, saved=0.3)


class SpeedBook:
    """The speeds known on this machine, in one file that every process reads and writes."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file or paths.home() / "speeds.json"

    def get_speed(self, config: RunConfig) -> Speed | None:
        """Return the speed of a config.

        It is None where it was not measured, or this machine lacks the device or the precision.
        """
        try:
            found = _read(self._file)["speeds"].get(_key(config))
            speed = Speed(**found) if found else None
        except (ConfigError, TypeError):
            # TypeError: the entry was written by another version.
            return None
        return speed if speed and all(map(_is_measured, asdict(speed).values())) else None

    def get_decode_seconds(self, dataset: Dataset, image_size: int) -> float | None:
        """Return the time to read one of the data set's images.

        It is None where the time was not measured.
        """
        found = _read(self._file)["decode"].get(f"{dataset.fingerprint}-{image_size}")
        return found if _is_measured(found) else None

    def has_all_speeds(self, config: RunConfig, dataset: Dataset) -> bool:
        """Return whether all numbers of a forecast were measured."""
        speed = self.get_speed(config)
        return (
            speed is not None
            and speed.step_bytes > 0
            and self.get_decode_seconds(dataset, config.image_size) is not None
        )

    def learn(self, config: RunConfig, speed: Speed) -> None:
        """Store the speed of a config."""
        self._add("speeds", _key(config), asdict(speed))

    def learn_decoding(self, fingerprint: str, image_size: int, seconds: float) -> None:
        """Store the seconds that reading one image of a data set takes at this size."""
        self._add("decode", f"{fingerprint}-{image_size}", seconds)

    def get_compilation(self, key: str) -> Compilation:
        """Return the cost and gain of compiling a part.

        Where it was never compiled, these are the medians of the parts that gained, or usual ones.
        """
        stored = _read(self._file)["compilations"]
        known = {name: one for name, value in stored.items() if (one := _parse_compilation(value))}
        if key in known:
            return known[key]
        gaining = [one for one in known.values() if one.saved > 0] or [_USUAL]
        return Compilation(
            *(
                float(np.median([getattr(one, name) for one in gaining]))
                for name in ("seconds", "saved")
            )
        )

    def learn_compilation(self, key: str, measured: Compilation) -> None:
        """Store the cost and gain of compiling a part."""
        self._add("compilations", key, asdict(measured))

    def _add(self, kind: str, key: str, value: Any) -> None:
        # Recording a speed must not fail a run.
        with suppress(OSError), FileLock(f"{self._file}.lock", timeout=_PATIENCE):
            known = _read(self._file)
            other_entries = [(name, one) for name, one in known[kind].items() if name != key]
            known = known | {kind: dict([*other_entries, (key, value)][-_KNOWN_SPEEDS:])}
            write_bytes(self._file, json.dumps(known, indent=1).encode())


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """Return ``speeds``, ``decode`` and ``compilations``, each by its key. Do not change them."""
    return _parse(file, file_stamp(file))


@lru_cache(maxsize=4)
def _parse(file: Path, _changed: Stamp | None) -> dict[str, dict[str, Any]]:
    try:
        known = json.loads(read_regular(file, _LARGEST))
        # Missing or damaged. Speeds can be measured again.
    except (OSError, ValueError, RecursionError):
        known = None
    known = known if isinstance(known, dict) else {}
    return {
        kind: known[kind] if isinstance(known.get(kind), dict) else {}
        for kind in ("speeds", "decode", "compilations")
    }


def _parse_compilation(value: Any) -> Compilation | None:
    try:
        found = Compilation(**value)
    except TypeError:
        return None
    return found if all(map(_is_measured, asdict(found).values())) else None


def _is_measured(value: Any) -> bool:
    """Return whether a value of the book is a number that a forecast can be computed from."""
    try:
        return math.isfinite(value)
    except (TypeError, OverflowError):
        return False


def learn_from_run(
    book: SpeedBook,
    config: RunConfig,
    started: dict[str, Any],
    epochs: list[dict[str, Any]],
    finished: dict[str, Any],
) -> None:
    """Correct the book by what a run really took.

    Args:
        book: The book to correct.
        config: Settings of the run.
        started: The run's RunStarted row.
        epochs: Its EpochEnded rows, none where it was resumed after its last one. Without epochs,
            its HeadFitted row.
        finished: The run's RunFinished row.
    """
    cache, counts = started["cache"], started["counts"]
    known = book.get_speed(config)
    last_thaw_epoch = max(stage["thaw_epoch"] for stage in started["stages"])
    fit_times = [row["seconds"] for row in epochs if row.get("event") == "HeadFitted"]
    step_times = fit_times or [
        row["train_seconds"] for row in epochs if row["epoch"] >= last_thaw_epoch
    ]
    # Without a calibration, a run alone does not tell all that a forecast needs.
    if known is None or not step_times:
        return
    step = float(np.median(step_times)) / counts[TRAIN]
    forward = (
        known.forward
        if fit_times
        else float(np.median([row["val_seconds"] for row in epochs])) / counts[VAL]
    )
    if cache["where"] == "off":
        # The whole network ran. In the book, a step excludes the trunk.
        forward = forward if fit_times else max(0.0, forward - known.trunk)
        corrected = replace(known, step=max(0.0, step - known.trunk), forward=forward)
        if known.exact:
            corrected = replace(
                corrected,
                exact=finished["evaluation_seconds"] / (counts[VAL] + counts.get(TEST, 0)),
            )
    else:
        trunk = (
            cache["seconds_per_row"]
            if cache["trunk_seconds"] and cache["seconds_per_row"]
            else known.trunk
        )
        corrected = replace(
            known,
            step=step,
            forward=forward,
            trunk=trunk,
            activation_bytes=cache["bytes"] // max(1, cache["rows"]),
        )
    book.learn(config, corrected)
    num_images = sum(counts.values())
    if started["decoded"] == num_images:
        book.learn_decoding(
            started["fingerprint"], config.image_size, started["decode_seconds"] / num_images
        )


def conditions(config: RunConfig) -> tuple[Any, ...]:
    """Return what speeds depend on beside the strategy."""
    device = device_for_run(config)
    return (
        device.label,
        device.precision,
        config.backbone,
        config.image_size,
        config.batch_size,
        config.optimizer,
    )


def _key(config: RunConfig) -> str:
    trained = [stage for stage, rate in (config.stage_rates or {}).items() if rate]
    strategy = config.strategy if config.strategy != "custom" else f"custom {config.cut} {trained}"
    strategy = f"{strategy} on {config.features_from}" if config.features_from else strategy
    if strategy == "lora":
        strategy = f"lora {config.lora_rank} from {config.lora_from}, norms {config.lora_norms}"
    device, precision, backbone, *sizes = conditions(config)
    return " | ".join(map(str, (device, precision, backbone, strategy, *sizes)))
