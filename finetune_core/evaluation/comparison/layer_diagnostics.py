"""Changes that training made, stage by stage: weights, features and gradients.

- Change: norm of the change of a stage's weights, relative to the norm of its initial weights.
- Likeness: linear CKA (Kornblith et al. 2019) between the stage's features of the same images
  before and after training. It is debiased, because there are fewer images than features (Nguyen et
  al. 2021). 1 means equal up to rotation and scale.
- Gradient share: the stage's part of the squared norm of the whole gradient, averaged over epochs,
  as the run recorded it.
- Pull: norm of the gradient at the trained network, relative to the norm of the weights, for every
  stage as if it were trainable (Auto-RGN, Lee et al. 2023). It shows where further training would
  act first.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, TypeAdapter
from torch import nn
from typing_extensions import TypedDict

from finetune_core.data.dataset import assign_units
from finetune_core.data.splits import TRAIN, VAL
from finetune_core.errors import DataError, RunError
from finetune_core.evaluation.prediction.predictor import Predictor, load_predictor
from finetune_core.evaluation.run_images import RunImages, load_run_images
from finetune_core.files import read_regular, write_bytes
from finetune_core.inspection.background import run_in_background
from finetune_core.inspection.features import PooledStages, iterate_inputs, pool_stages
from finetune_core.inspection.learned import Probe, fit_probe
from finetune_core.models.network import Network
from finetune_core.models.stages import Stage
from finetune_core.runs.store import Run
from finetune_core.training.checkpoints.networks import build_initial_network
from finetune_core.training.devices.device import Device
from finetune_core.training.devices.turn import run_on_idle_device
from finetune_core.training.events import Count, Length, Name, Number, Share
from finetune_core.training.predictions import Moment, predictions_mtime
from finetune_core.training.step.weight_gradients import slice_before_convolution
from finetune_core.work import Step, Work

_FILE = "layers.json"
_MOST = {TRAIN: 500, VAL: 300}  # images
_MOST_PULLED = 128  # training images that gradients are computed on
_FEWEST = 10  # validation images, below which probes and likeness are meaningless


@dataclass(frozen=True)
class StageChange:
    """Change of one stage through training.

    Attributes:
        name: name of the stage.
        trains: True if the run trained any of its parameters.
        change: relative change of its weights; for the head, from its random initialisation. 0 if
            frozen.
        likeness: CKA before and after; None if the network cannot be cut behind this stage, and for
            the head.
        gradient_share: 0…1; None if it was not recorded, or the stage is frozen.
        pull: relative gradient norm after training, as if the stage were trainable.
    """

    name: Name
    trains: bool
    change: Length
    likeness: Number | None
    gradient_share: Length | None
    pull: Length


@dataclass(frozen=True)
class Layers:
    """Layer diagnostics of one run.

    Attributes:
        stages: from the input to the head.
        probes: linear probes on the features of each stage before training, evaluated on validation
            images; empty if there are too few images, or the network cannot be cut.
        judged: number of validation images that likeness and probes were computed on.
        pulled: number of training images that the pull was computed on.
        fitted: share of these training images that the trained network classifies correctly.
    """

    stages: Annotated[tuple[StageChange, ...], Field(max_length=1000)]
    probes: Annotated[tuple[Probe, ...], Field(max_length=1000)]
    judged: Count
    pulled: Count
    fitted: Share


class _Stamp(TypedDict):
    """Time stamp of the predictions that the run had when it was measured."""

    predictions: Moment


_LAYERS, _STAMP = TypeAdapter(Layers), TypeAdapter(_Stamp)
_LARGEST = 2**22  # bytes


@dataclass(frozen=True)
class _InitialFeatures:
    """Features of a run's images before training; rows are training, then validation images."""

    images: RunImages
    stages: tuple[str, ...]
    by_stage: tuple[np.ndarray, ...]
    probes: tuple[Probe, ...]


def load_layers(run: Run) -> Layers | None:
    """Return the stored diagnostics of a run.

    None if there are none, or the run has been trained on since.
    """
    try:
        content = read_regular(run.run_dir / _FILE, _LARGEST)
        stamp, layers = (
            _STAMP.validate_json(content, strict=True),
            _LAYERS.validate_json(content, strict=True),
        )
    except (OSError, ValueError):  # none, or damaged: it can be measured again
        return None
    stages = [stage["name"] for stage in run.started["stages"]] if run.history.started else []
    is_same_network = [stage.name for stage in layers.stages] == stages and {
        probe.stage for probe in layers.probes
    } <= set(stages)
    return (
        layers
        if is_same_network and stamp["predictions"] == predictions_mtime(run.run_dir)
        else None
    )


def representative_run(runs: Sequence[Run]) -> Run:
    """Return the run that represents an arm: the first with stored diagnostics, else the first."""
    return next((run for run in runs if load_layers(run)), runs[0])


def measure_layers(runs: Sequence[Run], roots: Sequence[Path] = ()) -> Work[None]:
    """Measure the layer diagnostics of each run and store them in its directory.

    An idle GPU is used if there is one. Runs with the same initial network share its features.

    Args:
        runs: the runs.
        roots: if given, images outside of these folders are refused.

    Yields:
        Steps of the phases ``index``, ``decode``, ``features`` and ``probe``.

    Raises:
        FinetuneError: if a run's images or weights are missing, its directory cannot be written to,
            or it is an ensemble.
    """
    yield from run_on_idle_device(partial(_measure_on, runs, roots))


def _measure_on(runs: Sequence[Run], roots: Sequence[Path], device: Device) -> Work[None]:
    if ensemble := next((run for run in runs if run.config.is_ensemble), None):
        raise RunError(
            f"{ensemble.run_id} is an ensemble: it has no stages of its own. Measure its runs."
        )
    starts: dict[str, _InitialFeatures] = {}
    for run in runs:
        changed = predictions_mtime(run.run_dir)
        predictor = load_predictor(run, device)
        start = build_initial_network(run.config, predictor.classes, run.run_dir).network
        key = _initial_key(run, start)
        if key not in starts:
            starts[key] = yield from _compute_initial(run, start, predictor, roots)
        measured = asdict((yield from _compare_stages(run, start, predictor, starts[key])))
        try:
            content = json.dumps(measured | {"predictions": changed}).encode()
            write_bytes(run.run_dir / _FILE, content, make_folder=False)
        except OSError as error:
            raise RunError(
                f"The layer diagnostics cannot be written to {run.run_dir}: {error.strerror}."
            ) from None


def linear_cka(one: np.ndarray, other: np.ndarray) -> float:
    """Return the debiased linear CKA of two sets of features of the same images.

    1 for features that are equal up to rotation and scale, about 0 for unrelated ones. NaN if one
    of the two is the same for all images.

    Args:
        one: ``[n, d]``, ``n > 3``.
        other: ``[n, e]``.
    """
    grams = [_centred_gram(features.astype(np.float64)) for features in (one, other)]
    cross, first, second = (
        float((a * b).sum()) for a, b in ((grams[0], grams[1]), (grams[0],) * 2, (grams[1],) * 2)
    )
    return cross / float(np.sqrt(first * second)) if first > 0 and second > 0 else float("nan")


def _centred_gram(features: np.ndarray) -> np.ndarray:
    """Return the U-centred Gram matrix ``[n, n]`` (Székely & Rizzo 2014).

    The sum of the product of two such matrices is proportional to the unbiased HSIC of Song et al.
    2012.
    """
    features = features - features.mean(0)  # changes nothing but the rounding
    gram: np.ndarray = features @ features.T
    np.fill_diagonal(gram, 0.0)
    count = len(gram)
    sums = gram.sum(1)
    gram -= (sums[:, None] + sums[None]) / (count - 2)
    gram += sums.sum() / ((count - 1) * (count - 2))
    np.fill_diagonal(gram, 0.0)
    return gram


def _initial_key(run: Run, initial: Network) -> str:
    """Return a key that is equal for runs with the same initial network and the same images."""
    config = run.config
    settings = (
        config.data,
        config.split_settings,
        config.edits,
        config.train_fraction,
        config.input_settings,
        config.features_from,
        initial.weights_hash,
    )
    return str((*settings, config.seed if config.train_fraction < 1 else None))


def _compute_initial(
    run: Run, initial: Network, predictor: Predictor, roots: Sequence[Path]
) -> Work[_InitialFeatures]:
    images = yield from load_run_images(run, _MOST, roots)
    try:
        pooled, stages = _cut_stages(initial, predictor)
    except DataError:  # without a cut there are no features, but the rest is worth showing
        return _InitialFeatures(images, (), (), ())
    train, val = images.rows[TRAIN], images.rows[VAL]
    by_stage = yield from _compute_features(
        pooled, initial, predictor, images, np.concatenate([train, val])
    )
    table = images.dataset.table.iloc[np.concatenate([train, val])]
    labels, sets = table["label"].to_numpy(), assign_units(table)
    places = np.arange(len(labels))
    probes: list[Probe] = []
    if len(val) >= _FEWEST and len(np.unique(labels[: len(train)])) > 1:
        for done, (stage, values) in enumerate(zip(stages, by_stage, strict=True)):
            fit = partial(
                fit_probe, stage, values, labels, sets, places[: len(train)], places[len(train) :]
            )
            probes.append(
                (yield from run_in_background("probe", fit, partial(int, done), len(stages)))
            )
    return _InitialFeatures(images, stages, by_stage, tuple(probes))


def _compare_stages(
    run: Run, initial: Network, predictor: Predictor, start: _InitialFeatures
) -> Work[Layers]:
    images, val = start.images, start.images.rows[VAL]
    likeness: dict[str, float] = {}
    if start.stages and len(val) >= _FEWEST:
        pooled, _ = _cut_stages(predictor.network, predictor)
        after = yield from _compute_features(pooled, predictor.network, predictor, images, val)
        pairs = zip(start.stages, start.by_stage, after, strict=True)
        likeness = {stage: linear_cka(before[-len(val) :], now) for stage, before, now in pairs}
    pulls, pulled, fitted = yield from _compute_pulls(predictor, images)
    shares = _mean_gradient_shares(run)
    old, new = (network.model.cpu().state_dict() for network in (initial, predictor.network))
    trains = {row["name"]: row["trains"] for row in run.started["stages"]}
    moves = [
        StageChange(
            stage.name,
            trains[stage.name],
            _norm(new[name] - old[name] for name in stage.parameters)
            / max(_norm(old[name] for name in stage.parameters), 1e-12),
            _none_if_nan(likeness.get(stage.name)),
            shares.get(stage.name),
            pulls[stage.name],
        )
        for stage in predictor.network.stages
    ]
    return Layers(tuple(moves), start.probes, len(val), pulled, fitted)


def _cut_stages(network: Network, predictor: Predictor) -> tuple[PooledStages, tuple[str, ...]]:
    """Return the network's stages, on the device of the run's network."""
    # Stages are cut on the CPU. The parts share their modules with the whole network.
    network.model.cpu()
    pooled, stages = pool_stages(network)
    predictor.device.move_module(network.model)
    return predictor.device.move_module(pooled), stages


def _compute_features(
    pooled: PooledStages,
    network: Network,
    predictor: Predictor,
    images: RunImages,
    rows: np.ndarray,
) -> Work[tuple[np.ndarray, ...]]:
    """Return float32 ``[n, d]`` for each stage."""
    features, done = [], 0
    for batch, inputs in iterate_inputs(
        network, images.pixels, rows, predictor.image_size, predictor.device
    ):
        with torch.no_grad(), predictor.device.autocast():
            features.append(pooled(inputs).float().cpu().numpy())
        done += len(batch)
        yield Step(done, len(rows), "features")
    return tuple(np.split(np.concatenate(features), np.cumsum(pooled.widths)[:-1], axis=1))


def _compute_pulls(
    predictor: Predictor, images: RunImages
) -> Work[tuple[dict[str, float], int, float]]:
    """Compute the relative gradient of the mean loss for each stage.

    Returns:
        Stage -> relative gradient norm, the number of training images, and the share of these that
        is classified correctly.
    """
    network, device = predictor.network, predictor.device
    rows = images.rows[TRAIN]
    rows = np.sort(
        np.random.default_rng(0).choice(rows, min(_MOST_PULLED, len(rows)), replace=False)
    )
    labels = torch.from_numpy(images.dataset.table["label"].to_numpy(np.int64).copy())
    model = network.model.eval().requires_grad_(True)
    slice_before_convolution(model.modules())
    model.zero_grad()
    correct, done = 0, 0
    for batch, inputs in iterate_inputs(network, images.pixels, rows, predictor.image_size, device):
        targets = labels[batch].to(device.torch_device)
        # In fp32, because rounding would show in a gradient of a few images.
        logits = model(inputs)
        (
            nn.functional.cross_entropy(logits.float(), targets, reduction="sum") / len(rows)
        ).backward()
        correct += int((logits.argmax(1) == targets).sum())
        done += len(batch)
        yield Step(done, len(rows), "features")
    pulls = {
        stage.name: _compute_pull(stage, dict(model.named_parameters())) for stage in network.stages
    }
    return pulls, len(rows), correct / len(rows)


def _compute_pull(stage: Stage, parameters: dict[str, nn.Parameter]) -> float:
    own = [parameters[name] for name in stage.parameters]
    return _norm(parameter.grad for parameter in own if parameter.grad is not None) / max(
        _norm(own), 1e-12
    )


def _mean_gradient_shares(run: Run) -> dict[str, float]:
    """Return stage -> share of the squared gradient norm, mean over the epochs that recorded it."""
    shares_by_stage: dict[str, list[float]] = {}
    measured = [row["stages"] for row in run.history.epochs if row.get("stages")]
    for stages in measured:
        total = sum(stage["gradient_norm"] ** 2 for stage in stages.values())
        for name, values in stages.items():
            shares_by_stage.setdefault(name, []).append(
                values["gradient_norm"] ** 2 / total if total else 0.0
            )
    return {name: sum(shares) / len(measured) for name, shares in shares_by_stage.items()}


def _norm(tensors: Any) -> float:
    return float(
        sum(float(tensor.detach().cpu().double().square().sum()) for tensor in tensors) ** 0.5
    )


def _none_if_nan(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else value
