"""Analysis with embeddings: features once, then findings, a map, and a linear probe by layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from finetune_core.config import make_config
from finetune_core.data.checks import some
from finetune_core.data.dataset import Dataset, sides
from finetune_core.data.findings import Finding
from finetune_core.data.splits import TEST, TRAIN, VAL
from finetune_core.formatting import SPLIT_WORDS, percent, things
from finetune_core.inspection.atlas import MOST_MAPPED, lay_out
from finetune_core.inspection.background import in_background
from finetune_core.inspection.features import Features, compute_features
from finetune_core.inspection.learned import (
    Probe,
    agreement,
    class_predictions,
    far_away,
    label_errors,
    nearest_of_class,
    out_of_fold,
    probe,
    two_sample_auc,
)
from finetune_core.inspection.similar import Embeddings
from finetune_core.models.network import network_stages
from finetune_core.models.stages import Stage
from finetune_core.training.stage_plan import cut_index, plan
from finetune_core.training.strategies import STRATEGIES
from finetune_core.work import Work

IMAGE_SIZE = 224
_SHIFTED = 0.6  # area under the curve
_CLEAR = 3.0  # standard errors
_ENOUGH = 0.97  # accuracy from frozen features that leaves little to win
_FEWEST = 10  # images of a split


@dataclass(frozen=True)
class Suggestion:
    """Which stages to train, by where a linear probe stops getting better.

    Attributes:
        strategy: a name of ``STRATEGIES``, or ``custom`` with ``cut``.
        cut: the first stage to train.
        reason: one sentence.
    """

    strategy: str
    cut: str
    reason: str


@dataclass(frozen=True)
class DeepReport:
    """What a backbone's features show in a data set.

    Attributes:
        findings: possible label errors, splits that differ, outliers.
        auc: split -> how well a linear model separates it from the training images (0.5: not at all).
        probes: one per stage, input to head; empty where a split is too small.
        suggestion: None without probes.
        places: ``id, x, y`` of the map; a sample of the images where there are very many, none where no map was asked for.
        predictions: by image id, what a linear model that has seen neither it nor its near-duplicates takes it for (see
            ``class_predictions``): ``predicted`` (class name), ``confidence``, ``label_confidence``.
        embeddings: of all images, from the stage whose probe is best.
    """

    backbone: str
    image_size: int
    findings: tuple[Finding, ...]
    auc: dict[str, float]
    probes: tuple[Probe, ...]
    suggestion: Suggestion | None
    places: pd.DataFrame
    predictions: pd.DataFrame
    embeddings: Embeddings

    def to_json(self) -> dict[str, Any]:
        return {
            "backbone": self.backbone,
            "image_size": self.image_size,
            "auc": self.auc,
            "probes": [
                {"stage": one.stage, "accuracy": one.accuracy, "error": one.error}
                for one in self.probes
            ],
            "suggestion": vars(self.suggestion) if self.suggestion else None,
        }


def inspect_deeply(
    dataset: Dataset, backbone: str, image_size: int = IMAGE_SIZE, *, map_too: bool = True
) -> Work[DeepReport]:
    """Compute every stage's features once, and analyze them.

    Args:
        map_too: compute the map, which takes long and only a page shows.

    Yields:
        Steps of the phases ``decode``, ``features``, ``probe``, ``labels``, ``shift``, ``outliers`` and ``map``.

    Returns:
        A DeepReport.

    Raises:
        FinetuneError: when the features cannot be computed.
    """
    features = yield from compute_features(dataset, backbone, image_size)
    table = dataset.table.iloc[features.rows].reset_index(drop=True)
    probes = yield from _probes(features, table)
    telling = features.by_stage[_best(probes)] if probes else features.final
    labels, predictions = yield from _label_findings(telling, table, dataset.classes)
    findings = [labels]
    auc, shifted = yield from _shift(features.final, table)
    findings.append(shifted)
    findings.append((yield from _outliers(features, table)))
    mapped = _mapped(len(table)) if map_too else np.arange(0)
    places = (yield from lay_out(telling[mapped])) if map_too else np.empty((0, 2), np.float32)
    return DeepReport(
        backbone,
        image_size,
        tuple(finding for finding in findings if finding),
        auc,
        tuple(probes),
        suggest(probes, backbone, image_size) if probes else None,
        pd.DataFrame({"id": table["id"].to_numpy()[mapped], "x": places[:, 0], "y": places[:, 1]}),
        predictions,
        Embeddings.of(table["id"].to_numpy(), telling),
    )


def deepest_good(probes: Sequence[Probe]) -> Probe:
    """The deepest stage whose probe is within one standard error of the best one: the one-standard-error rule (Breiman et al. 1984),
    the simplest of what is about as good, where simple means that more stages stay frozen.

    Args:
        probes: input to head.
    """
    best = max(probes, key=lambda one: one.accuracy)
    return [one for one in probes if one.accuracy >= best.accuracy - best.error][-1]


def suggest(probes: list[Probe], backbone: str, image_size: int | None = None) -> Suggestion:
    """Train what comes after the deepest stage whose frozen features are about as good as any.

    Args:
        image_size: of the images that were probed; None for the one that the backbone was pretrained on.
    """
    stages = network_stages(backbone, image_size=image_size)
    names = [stage.name for stage in stages]
    good, last = deepest_good(probes), probes[-1]

    def found(one: Probe) -> str:
        return f"A linear model on the frozen features of {one.stage} classifies {percent(one.accuracy)} of the validation images correctly"

    if good is not last:
        cut = names[min(names.index(good.stage) + 1, len(names) - 2)]
        reason = (
            f"{found(good)}, and all deeper stages do worse by more than one standard error ({percent(last.accuracy)} at the end): what they "
            f"learned before does not carry over, so train from {cut} on."
        )
    elif last.accuracy >= _ENOUGH:
        cut = names[-1]
        reason = f"{found(last)}, and no stage does clearly better: what the network learned carries over to its end, so a new head may do."
    else:
        cut = names[-2]
        reason = f"{found(last)}, and no stage does clearly better: the features carry over, and training the last one with the head adds to them."
    return Suggestion(_named(backbone, stages, cut), cut, reason)


def _named(backbone: str, stages: Sequence[Stage], cut: str) -> str:
    """The ready-made strategy that trains from this stage on, if there is one."""
    at = [stage.name for stage in stages].index(cut)
    ready = (name for name, strategy in STRATEGIES.items() if strategy.classic)
    configs = {
        name: make_config({"data": "any", "backbone": backbone, "strategy": name}) for name in ready
    }
    return next(
        (name for name, config in configs.items() if cut_index(plan(config, stages)) == at),
        "custom",
    )


def _best(probes: list[Probe]) -> int:
    return int(np.argmax([one.accuracy for one in probes]))


def _probes(features: Features, table: pd.DataFrame) -> Work[list[Probe]]:
    train, val = (np.flatnonzero(table["split"] == split) for split in (TRAIN, VAL))
    labels, sets = table["label"].to_numpy(), sides(table)
    if len(val) < _FEWEST or len(np.unique(labels[train])) < 2:
        return []
    probes: list[Probe] = []
    for done, (stage, values) in enumerate(zip(features.stages, features.by_stage, strict=True)):
        fit = partial(probe, stage, values, labels, sets, train, val)
        probes.append(
            (yield from in_background("probe", fit, partial(int, done), len(features.stages)))
        )
    return probes


def _label_findings(
    features: np.ndarray, table: pd.DataFrame, classes: tuple[str, ...]
) -> Work[tuple[Finding | None, pd.DataFrame]]:
    labels, sets = table["label"].to_numpy(), table["near"].to_numpy()

    def find_suspects() -> tuple[
        np.ndarray, np.ndarray, np.ndarray, np.ndarray, float, pd.DataFrame
    ]:
        probabilities, kept = out_of_fold(features, labels, sets)
        suspects, alike = label_errors(probabilities, labels, kept)
        shares = (
            probabilities[suspects, np.searchsorted(kept, alike)] if len(suspects) else np.empty(0)
        )
        return (
            suspects,
            alike,
            shares,
            nearest_of_class(features, labels, suspects, alike),
            agreement(probabilities, labels, kept),
            class_predictions(probabilities, labels, kept),
        )

    suspects, alike, shares, twins, agreed, predictions = yield from in_background(
        "labels", find_suspects
    )
    ids = table["id"].to_numpy()
    predictions.index = pd.Index(ids[predictions.index], name="id")
    predictions["predicted"] = np.array(classes, dtype=object)[predictions["predicted"]]
    if not len(suspects):
        return None, predictions
    paths = tuple(ids[suspects])
    names = [classes[label] for label in alike]
    notes = {
        path: f"labelled {given}, looks like {name} ({percent(share, 0)})"
        for path, given, name, share in zip(
            paths, table["class"].to_numpy()[suspects], names, shares, strict=True
        )
    }
    looks = "looks" if len(paths) == 1 else "look"
    message = f"{things(len(paths), 'image')} ({percent(len(paths) / len(table))}) {looks} like another class, possibly mislabelled. The linear model agrees with {percent(agreed, 0)} of all labels; the lower that share, the more of these are its own mistakes."
    sets_shown = tuple(zip(paths, ids[twins], strict=True))
    found = Finding(
        "label_errors",
        "warning",
        message,
        len(paths),
        paths,
        sets=sets_shown,
        to=dict(zip(paths, names, strict=True)),
        notes=notes,
        confidence=dict(zip(paths, shares.tolist(), strict=True)),
    )
    return found, predictions


def _shift(
    features: np.ndarray, table: pd.DataFrame
) -> Work[tuple[dict[str, float], Finding | None]]:
    auc: dict[str, float] = {}
    shifted: list[str] = []
    messages: list[str] = []
    train = np.flatnonzero(table["split"] == TRAIN)
    sets = table["near"].to_numpy()
    for split in (VAL, TEST):
        rows = np.flatnonzero(table["split"] == split)
        if min(len(rows), len(train)) < _FEWEST:
            continue
        compare = partial(
            two_sample_auc, features[train], features[rows], sets[np.concatenate([train, rows])]
        )
        score, error = yield from in_background("shift", compare)
        if np.isnan(score):
            continue
        auc[split] = score
        if score >= _SHIFTED and score - 0.5 > _CLEAR * error:
            shifted.extend(table["id"].to_numpy()[rows])
            messages.append(f"{SPLIT_WORDS[split].lower()} images with an AUC of {score:.2f}")
    if not messages:
        return auc, None
    message = f"A linear model distinguishes the training images from {' and '.join(messages)} (0.5: chance level, 1: perfect separation). Metrics on one say less about the other."
    return auc, Finding("shift", "warning", message, len(shifted), tuple(shifted))


def _outliers(features: Features, table: pd.DataFrame) -> Work[Finding | None]:
    # the last one alone sees little of what ImageNet does not hold
    deeper = features.by_stage[len(features.by_stage) // 2 :]
    far, scores = yield from in_background(
        "outliers", partial(far_away, deeper, table["near"].to_numpy())
    )
    if not len(far):
        return None
    paths = tuple(table["id"].to_numpy()[far])
    message = (
        f"{things(len(paths), 'image')} far from all others, possibly outliers: {some(paths)}."
    )
    notes = {
        path: f"{score:.0f} times the usual spread away"
        for path, score in zip(paths, scores, strict=True)
    }
    return Finding("outliers", "warning", message, len(paths), paths, notes=notes)


def _mapped(count: int) -> np.ndarray:
    if count <= MOST_MAPPED:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, MOST_MAPPED, replace=False))
