"""Measurements of one network: cross-validated linear probes by stage, and training forecasts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from finetune_core.config import RunConfig, get_setting, make_config
from finetune_core.data.dataset import Dataset, assign_units
from finetune_core.data.splits import TRAIN
from finetune_core.inspection.features import Features, compute_features
from finetune_core.models.catalogue import backbone_info, default_image_size
from finetune_core.models.network import check_image_size, network_stages
from finetune_core.models.weights import PRETRAINED, download, fetch_description
from finetune_core.training.data_pipeline.batches import sample_keys, take_subset
from finetune_core.training.devices.speed_book import SpeedBook
from finetune_core.training.forecast.forecast import forecast_run, list_comparable_configs
from finetune_core.training.forecast.timing import calibrate
from finetune_core.training.heads.logistic import cross_validate_probe
from finetune_core.training.strategies.catalogue import BASELINE, STRATEGIES
from finetune_core.work import Step, Work, with_fixed_step, with_phase

TIMED = tuple(name for name, strategy in STRATEGIES.items() if strategy.classic or name == BASELINE)


@dataclass(frozen=True, eq=False)
class NetworkProbes:
    """Linear probes of one network on the sampled training images, with forecasts.

    Attributes:
        backbone: name of the network.
        image_size: side of the input in pixels.
        top1: published ImageNet accuracy of the weights in percent; None if their source states
            none.
        ids: ids of the images, ``[n]``.
        sets: int ``[n]``, equal for near-duplicates and images of one group.
        stages: names of the stages, from the input to the last one before the head.
        right: bool ``[stages, n]``: images that the probe of a stage classifies correctly. The
            probe was fitted without the image and its near-duplicates.
        after: by stage, the forecast in seconds of training all later stages; None where nothing
            could be timed.
        forecasts: strategy of ``TIMED`` -> forecast in seconds, where the strategy could be timed.
    """

    backbone: str
    image_size: int
    top1: float | None
    ids: np.ndarray
    sets: np.ndarray
    stages: tuple[str, ...]
    right: np.ndarray
    after: tuple[float | None, ...]
    forecasts: Mapping[str, float]


def sample_training_images(dataset: Dataset, images: int, seed: int) -> Dataset:
    """Return the data set restricted to a stratified sample of its training images.

    Args:
        dataset: the data set.
        images: maximum number of images in the sample.
        seed: seed of the sample.
    """
    table = dataset.table
    rows = np.flatnonzero(table["split"] == TRAIN)
    labels, keys = table["label"].to_numpy(), sample_keys(table["id"])
    sample = take_subset(rows, labels, keys, images / len(rows), seed)
    # The sample may be too large: shares are rounded, and no class is left out.
    if len(sample) > images:
        sample = np.sort(np.random.default_rng(seed).choice(sample, images, replace=False))
    return replace(dataset, table=table.iloc[sample].reset_index(drop=True))


def probe_network(
    backbone: str, base: RunConfig, dataset: Dataset, sample: Dataset, *, own_size: bool
) -> Work[NetworkProbes]:
    """Fit linear probes on every stage of a network, and forecast training by timing short runs.

    Weights that are not on this machine are downloaded first.

    Args:
        backbone: name of the network.
        base: the settings of the runs that are forecast; its seed also draws the folds.
        dataset: the data set that runs would train on.
        sample: the images to probe with, from ``sample_training_images``.
        own_size: resize images to the size that the network was pretrained on instead of the size
            in ``base``.

    Yields:
        Steps of the phases ``download``, ``decode``, ``features``, ``probe``, ``timing`` and
        ``device``.

    Raises:
        FinetuneError: if the weights cannot be had, or the network cannot be cut or cannot take
            these images.
    """
    yield from with_phase("download", fetch_description(backbone))
    info = backbone_info(backbone)
    config = make_run_config(
        base, backbone, default_image_size(backbone) if own_size else base.image_size
    )
    check_image_size(backbone, config.image_size)  # before anything is downloaded
    if not info.is_ready:
        yield from with_phase("download", download(info))
    features = yield from compute_features(sample, backbone, config.image_size, config.fit)
    right = yield from _evaluate_probes(features, sample, config.seed)
    after, forecasts = yield from _forecast_training(config, dataset, features.stages)
    images = sample.table.iloc[features.rows]
    return NetworkProbes(
        backbone,
        config.image_size,
        info.top1,
        images["id"].to_numpy(),
        assign_units(images),
        features.stages,
        right,
        after,
        forecasts,
    )


def make_run_config(
    base: RunConfig, backbone: str, image_size: int, strategy: str = "last_block"
) -> RunConfig:
    """Return the settings of a run that fine-tunes this network from its pretrained weights.

    Images are preprocessed as in pretraining, except for size and fit. Settings in ``base`` that
    belong to its strategy are left out, because they may name stages of another network.
    """
    network = {"backbone": backbone, "weights": PRETRAINED, "from_run": None}
    inputs = {name: get_setting(name).default for name in base.input_settings} | {
        "image_size": image_size,
        "fit": base.fit,
    }
    return make_config(base.model_dump() | base.strategy_changes(strategy) | network | inputs)


def _evaluate_probes(features: Features, sample: Dataset, seed: int) -> Work[np.ndarray]:
    table = sample.table.iloc[features.rows]
    labels, sets = torch.tensor(table["label"].to_numpy()), assign_units(table)
    correct = []
    for done, values in enumerate(features.by_stage):
        step = Step(done, len(features.stages), "probe")
        fitting = cross_validate_probe(
            torch.from_numpy(values), labels, sets, len(sample.classes), seed
        )
        correct.append((yield from with_fixed_step(step, fitting)))
    return np.stack(correct)


def _forecast_training(
    config: RunConfig, dataset: Dataset, stages: Sequence[str]
) -> Work[tuple[tuple[float | None, ...], dict[str, float]]]:
    names, book = (
        [stage.name for stage in network_stages(config.backbone, image_size=config.image_size)],
        SpeedBook(),
    )
    cuts = [
        config.model_copy(update={"strategy": "custom", "cut": names[names.index(stage) + 1]})
        for stage in stages
    ]
    strategies_configs = [
        candidate
        for candidate in list_comparable_configs(config, dataset.split_counts.get(TRAIN, 0))
        if candidate.strategy in TIMED
    ]
    yield from with_phase("timing", calibrate([*strategies_configs, *cuts], dataset, book))

    def forecast_seconds(config: RunConfig) -> float | None:
        forecast = forecast_run(config, dataset, book)
        return forecast.seconds if forecast else None

    forecasts = {
        str(candidate.strategy): seconds
        for candidate in strategies_configs
        if (seconds := forecast_seconds(candidate)) is not None
    }
    return tuple(map(forecast_seconds, cuts)), forecasts
