"""Forecast of a run's time and memory from the speeds known on this machine."""

from contextlib import suppress
from dataclasses import dataclass

from finetune_core.config import RunConfig
from finetune_core.data.dataset import Dataset
from finetune_core.data.splits import TEST, TRAIN, VAL
from finetune_core.errors import ConfigError
from finetune_core.models.catalogue import backbone_info_for
from finetune_core.training.data_pipeline.feeding import forward_batch_size
from finetune_core.training.data_pipeline.placement import get_idle_row_budget
from finetune_core.training.data_pipeline.trunk import choose_num_views, why_uncached
from finetune_core.training.devices.device import device_for_run
from finetune_core.training.devices.speed_book import Speed, SpeedBook
from finetune_core.training.strategies.catalogue import (
    BASELINE,
    STRATEGIES,
    count_epochs,
    has_fitted_initial_head,
)
from finetune_core.training.strategies.recipes import fill_auto
from finetune_core.training.strategies.stage_plan import (
    Strategy,
    count_factored,
    count_trainable_parameters,
    cut_index,
    list_stages,
    plan_strategy,
)

# Building the network, opening the data, the last checkpoint.
_FIXED_SECONDS = 0.8


@dataclass(frozen=True)
class Forecast:
    """Expected time and memory of a run, in seconds and bytes.

    Attributes:
        memory_bytes: Bytes of the program's memory.
        device_bytes: Bytes of a GPU's memory, which ``memory_bytes`` leaves out. None where the
            processor trains.
    """

    strategy: str
    trainable_parameters: int
    seconds: float
    # Mean over the epochs, because stages may thaw on the way. 0 without epochs.
    epoch_seconds: float
    memory_bytes: int
    device_bytes: int | None
    cache_bytes: int


def compute_forecast(
    config: RunConfig,
    dataset: Dataset,
    speed: Speed,
    decode_seconds: float,
    found: int = 0,
    fit_seconds: float = 0.0,
) -> Forecast:
    """Compute the run's time and memory.

    Args:
        config: Settings of the run.
        dataset: The data set of the run.
        speed: The config's speed on this machine.
        decode_seconds: Time to read one of the data set's images.
        found: How many of the activations are cached already.
        fit_seconds: Time to fit an initial head to the features of one image.
    """
    stages = list_stages(config, len(dataset.classes))
    strategy = plan_strategy(config, stages)
    train, val, test = (dataset.split_counts.get(split, 0) for split in (TRAIN, VAL, TEST))
    train = max(1, round(train * config.train_fraction))
    cached = not why_uncached(config, cut_index(strategy)) and speed.activation_bytes > 0
    trunk_again = 0.0 if cached else speed.trunk
    epochs = count_epochs(config)
    # A run in bf16 predicts test images only in its final evaluation. So does a run without epochs
    # with validation images.
    num_last = test if epochs else val + test
    final_seconds = (
        (val + test) * speed.exact if speed.exact else num_last * (speed.forward + trunk_again)
    )
    in_trunk = val + test - num_last if speed.exact else val + test
    views = choose_num_views(config, cut_index(strategy))
    rows = train * (views or 1) + in_trunk
    fits = bool(epochs) and has_fitted_initial_head(config)
    rows += train if fits and views else 0
    step = (
        speed.forward + (speed.step - speed.forward) * _compute_thawed_share(strategy, epochs)
        if epochs
        else speed.step
    )
    epoch = train * (step + trunk_again) + (val * (speed.forward + trunk_again) if epochs else 0.0)
    num_missing = max(0, rows - found) if cached else 0
    num_decoded = 0 if cached and not num_missing else train + val + test
    once_seconds = num_decoded * decode_seconds + num_missing * speed.trunk + final_seconds
    once_seconds += train * (speed.forward + trunk_again + fit_seconds) if fits else 0.0
    trainable = count_trainable_parameters(strategy, stages)
    cache_bytes = rows * speed.activation_bytes if cached else 0
    pixels = (
        (train + val + test)
        * 3
        * backbone_info_for(config).compute_resize_size(config.image_size) ** 2
    )
    weights = 4 * sum(stage.parameter_count for stage in stages)
    factored = 4 * count_factored(strategy, stages)
    memory_bytes, device_bytes = _estimate_memory(
        config, speed, weights, trainable, factored, pixels, cache_bytes
    )
    return Forecast(
        config.strategy,
        trainable,
        _FIXED_SECONDS + once_seconds + (epochs or 1) * epoch,
        epoch if epochs else 0.0,
        memory_bytes,
        device_bytes,
        cache_bytes,
    )


def _estimate_memory(
    config: RunConfig,
    speed: Speed,
    weights: int,
    trainable: int,
    factored: int,
    pixels: int,
    cache_bytes: int,
) -> tuple[int, int | None]:
    """Return the bytes of the program's memory, and of a GPU's.

    The latter is None where the processor trains.
    """
    device = device_for_run(config)
    # With gradients and moments.
    network = weights + (8 if config.optimizer == "sgd" else 12) * trainable
    # Gradients of the factored weights, and on a GPU their initial values.
    network += factored * (2 if device.is_gpu else 1)
    if not device.is_gpu:
        return network + speed.step_bytes + pixels + cache_bytes, None
    rows = cache_bytes or pixels
    rows = rows if rows <= get_idle_row_budget(device) else 0
    passing = max(speed.step_bytes, forward_batch_size(device) * speed.forward_bytes)
    # The program's memory holds the network as published.
    return (weights + pixels + cache_bytes - rows, network + passing + rows)


def _compute_thawed_share(strategy: Strategy, epochs: int) -> float:
    """Return the share of the trained stages that have thawed, over all epochs.

    Before a stage thaws, its backward pass is left out.
    """
    training = [stage for stage in strategy if not stage.frozen]
    return sum(epochs - stage.thaw_epoch + 1 for stage in training) / (epochs * len(training))


def forecast_run(
    config: RunConfig, dataset: Dataset, book: SpeedBook, found: int = 0
) -> Forecast | None:
    """Forecast the run's time and memory from what was measured on this machine.

    The forecast is None where a measurement is missing, and where nothing trains.
    """
    if config.averaged:
        return None
    speed, reading = book.get_speed(config), book.get_decode_seconds(dataset, config.image_size)
    if speed is None or not speed.step_bytes or reading is None:
        return None
    probe = book.get_speed(config.model_copy(update=config.strategy_changes(BASELINE)))
    return compute_forecast(config, dataset, speed, reading, found, probe.step if probe else 0.0)


def list_comparable_configs(config: RunConfig, num_images: int = 0) -> list[RunConfig]:
    """Return the config once with each strategy that could run.

    Custom is among them where it is the config's own.

    Args:
        config: Settings of the run.
        num_images: Training images, from which the settings in ``config.auto`` follow for each
            strategy. 0 keeps these settings.
    """
    configs = []
    for name in STRATEGIES:
        if name == config.strategy:
            configs.append(config)
        elif name != "custom":
            other = config.model_copy(update=config.strategy_changes(name))
            if num_images:
                other = fill_auto(other, num_images)
            # It may need more epochs than there are.
            with suppress(ConfigError):
                plan_strategy(other, list_stages(other))
                configs.append(other)
    return configs
