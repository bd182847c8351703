"""Analysis of a data set by embeddings: features once, then findings, a map, and linear probes."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from finetune_core.data.checks import join_names
from finetune_core.data.dataset import Dataset, assign_units
from finetune_core.data.decode import CROP
from finetune_core.data.findings import Finding
from finetune_core.data.splits import TEST, TRAIN, VAL
from finetune_core.formatting import SPLIT_TITLES, format_percent, pluralize
from finetune_core.inspection.atlas import MOST_MAPPED, lay_out
from finetune_core.inspection.background import run_in_background
from finetune_core.inspection.features import Features, compute_features
from finetune_core.inspection.learned import (
    Probe,
    class_predictions,
    find_label_errors,
    find_nearest_of_class,
    find_outliers,
    fit_probe,
    label_agreement,
    predict_out_of_fold,
    two_sample_auc,
)
from finetune_core.inspection.similar import Embeddings
from finetune_core.inspection.suggestion import Suggestion, find_strategy, suggest_cut
from finetune_core.models.network import network_stages
from finetune_core.work import Work

IMAGE_SIZE = 224
_SHIFTED = 0.6  # area under the curve above which splits differ
_CLEAR = 3.0  # standard errors above 0.5
_FEWEST = 10  # images of a split


@dataclass(frozen=True)
class DeepReport:
    """Findings about a data set from a backbone's features.

    Attributes:
        backbone: name of the network.
        image_size: side of the images in pixels.
        fit: how images became squares: ``crop`` or ``pad``.
        findings: possible label errors, splits that differ, outliers.
        auc: split -> how well a linear model separates it from the training images (0.5: not at
            all).
        probes: one per stage, from the input to the head; empty if a split is too small.
        suggestion: None without probes.
        strategy: strategy that trains from the suggested stage on; None if no stage is suggested.
        places: ``id, x, y`` of the map; a sample of the images if there are very many, empty if no
            map was asked for.
        predictions: by image id, the prediction of a linear model that was fitted without the image
            and its near-duplicates (see ``class_predictions``): ``predicted`` (class name),
            ``confidence``, ``label_confidence``.
        embeddings: of all images, from the stage with the best probe.
    """

    backbone: str
    image_size: int
    fit: str
    findings: tuple[Finding, ...]
    auc: dict[str, float]
    probes: tuple[Probe, ...]
    suggestion: Suggestion | None
    strategy: str | None
    places: pd.DataFrame
    predictions: pd.DataFrame
    embeddings: Embeddings

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "backbone": self.backbone,
            "image_size": self.image_size,
            "fit": self.fit,
            "auc": self.auc,
            "probes": [
                {"stage": probe.stage, "accuracy": probe.accuracy, "error": probe.error}
                for probe in self.probes
            ],
            "suggestion": {"strategy": self.strategy} | vars(self.suggestion)
            if self.suggestion
            else None,
        }


def inspect_deeply(
    dataset: Dataset,
    backbone: str,
    image_size: int = IMAGE_SIZE,
    fit: str = CROP,
    *,
    map_too: bool = True,
) -> Work[DeepReport]:
    """Compute every stage's features once, and analyse them.

    Args:
        dataset: the data set.
        backbone: name of the network.
        image_size: side of the images in pixels.
        fit: how images become squares: ``crop`` or ``pad``.
        map_too: compute the map, which takes long and only a page shows.

    Yields:
        Steps of the phases ``decode``, ``features``, ``probe``, ``labels``, ``shift``, ``outliers``
        and ``map``.

    Returns:
        A DeepReport.

    Raises:
        FinetuneError: if the features cannot be computed.
    """
    features = yield from compute_features(dataset, backbone, image_size, fit)
    table = dataset.table.iloc[features.rows].reset_index(drop=True)
    probes = yield from _fit_probes(features, table)
    best_features = features.by_stage[_find_best(probes)] if probes else features.final
    labels, predictions = yield from _find_label_errors(best_features, table, dataset.classes)
    findings = [labels]
    auc, shifted = yield from _find_shift(features.final, table)
    findings.append(shifted)
    findings.append((yield from _find_outliers(features, table)))
    rows = _sample_for_map(len(table)) if map_too else np.arange(0)
    places = (yield from lay_out(best_features[rows])) if map_too else np.empty((0, 2), np.float32)
    suggestion = suggest_cut(probes, _stage_names(backbone, image_size)) if probes else None
    cut = suggestion.cut if suggestion else None
    return DeepReport(
        backbone,
        image_size,
        fit,
        tuple(finding for finding in findings if finding),
        auc,
        tuple(probes),
        suggestion,
        find_strategy(cut, backbone, image_size) if cut else None,
        pd.DataFrame({"id": table["id"].to_numpy()[rows], "x": places[:, 0], "y": places[:, 1]}),
        predictions,
        Embeddings.from_features(table["id"].to_numpy(), best_features),
    )


def _stage_names(backbone: str, image_size: int) -> list[str]:
    return [stage.name for stage in network_stages(backbone, image_size=image_size)]


def _find_best(probes: list[Probe]) -> int:
    return int(np.argmax([probe.accuracy for probe in probes]))


def _fit_probes(features: Features, table: pd.DataFrame) -> Work[list[Probe]]:
    train, val = (np.flatnonzero(table["split"] == split) for split in (TRAIN, VAL))
    labels, sets = table["label"].to_numpy(), assign_units(table)
    if len(val) < _FEWEST or len(np.unique(labels[train])) < 2:
        return []
    probes: list[Probe] = []
    for done, (stage, values) in enumerate(zip(features.stages, features.by_stage, strict=True)):
        fit = partial(fit_probe, stage, values, labels, sets, train, val)
        probes.append(
            (yield from run_in_background("probe", fit, partial(int, done), len(features.stages)))
        )
    return probes


def _find_label_errors(
    features: np.ndarray, table: pd.DataFrame, classes: tuple[str, ...]
) -> Work[tuple[Finding | None, pd.DataFrame]]:
    labels, sets = table["label"].to_numpy(), table["near"].to_numpy()

    def find_suspects() -> tuple[
        np.ndarray, np.ndarray, np.ndarray, np.ndarray, float, pd.DataFrame
    ]:
        probabilities, kept = predict_out_of_fold(features, labels, sets)
        suspects, alike = find_label_errors(probabilities, labels, kept)
        shares = (
            probabilities[suspects, np.searchsorted(kept, alike)] if len(suspects) else np.empty(0)
        )
        return (
            suspects,
            alike,
            shares,
            find_nearest_of_class(features, labels, suspects, alike),
            label_agreement(probabilities, labels, kept),
            class_predictions(probabilities, labels, kept),
        )

    suspects, alike, shares, twins, agreement, predictions = yield from run_in_background(
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
        path: f"labelled {given}, looks like {name} ({format_percent(share, 0)})"
        for path, given, name, share in zip(
            paths, table["class"].to_numpy()[suspects], names, shares, strict=True
        )
    }
    looks = "looks" if len(paths) == 1 else "look"
    message = (
        f"{pluralize(len(paths), 'image')} ({format_percent(len(paths) / len(table))}) {looks} "
        "like another class, possibly mislabelled. The linear model agrees with "
        f"{format_percent(agreement, 0)} of all labels; the lower that share, the more of these "
        "are its own mistakes."
    )
    sets_shown = tuple(zip(paths, ids[twins], strict=True))
    finding = Finding(
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
    return finding, predictions


def _find_shift(
    features: np.ndarray, table: pd.DataFrame
) -> Work[tuple[dict[str, float], Finding | None]]:
    auc: dict[str, float] = {}
    ids: list[str] = []
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
        score, error = yield from run_in_background("shift", compare)
        if np.isnan(score):
            continue
        auc[split] = score
        if score >= _SHIFTED and score - 0.5 > _CLEAR * error:
            ids.extend(table["id"].to_numpy()[rows])
            messages.append(f"{SPLIT_TITLES[split].lower()} images with an AUC of {score:.2f}")
    if not messages:
        return auc, None
    message = (
        f"A linear model distinguishes the training images from {' and '.join(messages)} (0.5: "
        "chance level, 1: perfect separation). Metrics on one say less about the other."
    )
    return auc, Finding("shift", "warning", message, len(ids), tuple(ids))


def _find_outliers(features: Features, table: pd.DataFrame) -> Work[Finding | None]:
    # The last stage alone responds little to content that ImageNet lacks.
    deeper = features.by_stage[len(features.by_stage) // 2 :]
    far, scores = yield from run_in_background(
        "outliers", partial(find_outliers, deeper, table["near"].to_numpy())
    )
    if not len(far):
        return None
    paths = tuple(table["id"].to_numpy()[far])
    message = (
        f"{pluralize(len(paths), 'image')} far from all others, possibly outliers: "
        f"{join_names(paths)}."
    )
    notes = {
        path: f"{score:.0f} times the usual spread away"
        for path, score in zip(paths, scores, strict=True)
    }
    return Finding("outliers", "warning", message, len(paths), paths, notes=notes)


def _sample_for_map(count: int) -> np.ndarray:
    if count <= MOST_MAPPED:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, MOST_MAPPED, replace=False))
