"""Linear models on features: label errors, splits that differ, outliers, probes by stage."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from finetune_core.inspection.clusters import effective_images
from finetune_core.training.events import Length, Name, Share
from finetune_core.training.heads.folds import FOLDS, stratified_folds

_DIMENSIONS = 128
_MOST_FITTED = 20_000  # images; more take longer and do not improve a linear model
_NEIGHBOURS = 5
_FAR_DEVIATIONS = 5.0  # robust deviations of the log distance above its median


@dataclass(frozen=True)
class Probe:
    """Accuracy of a linear model on one stage's frozen features.

    Attributes:
        stage: name of the stage.
        accuracy: share of the validation images that are classified correctly.
        error: its standard error.
    """

    stage: Name
    accuracy: Share
    error: Length


def predict_out_of_fold(
    features: np.ndarray, labels: np.ndarray, sets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return class probabilities of every image, predicted out of fold.

    The linear model was fitted without the image and its near-duplicates.

    Args:
        features: ``[n, d]``.
        labels: int ``[n]``.
        sets: int ``[n]``, equal for near-duplicates.

    Returns:
        Probabilities ``[n, k]``, and the ``k`` labels that have enough images. Rows are NaN for
        images of other classes, and if only near-duplicates of an image show its class.
    """
    values, counts = np.unique(labels, return_counts=True)
    kept = values[counts >= FOLDS]
    rows = np.flatnonzero(np.isin(labels, kept))
    probabilities = np.full((len(labels), len(kept)), np.nan)
    if len(kept) < 2:
        return probabilities, kept
    reduced = _reduce(features[rows])
    for fitted, held_out in stratified_folds(labels[rows], sets[rows]):
        model = _make_classifier().fit(
            reduced[_subsample(fitted)], labels[rows][_subsample(fitted)]
        )
        columns = np.searchsorted(kept, model.classes_)
        held_out = held_out[np.isin(labels[rows[held_out]], model.classes_)]
        probabilities[rows[held_out]] = 0.0
        probabilities[np.ix_(rows[held_out], columns)] = model.predict_proba(reduced[held_out])
    return probabilities, kept


def find_label_errors(
    probabilities: np.ndarray, labels: np.ndarray, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find images that look like another class, the most confident first.

    This is confident learning (Northcutt et al. 2021, as in cleanlab).

    Args:
        probabilities: from ``predict_out_of_fold``.
        labels: int ``[n]``.
        kept: labels of the columns, from ``predict_out_of_fold``.

    Returns:
        Positions of the images, and the label that each one looks like.
    """
    from cleanlab.filter import find_label_issues  # the import takes a second

    rows = np.flatnonzero(~np.isnan(probabilities).any(axis=1))
    given = np.searchsorted(kept, labels[rows])
    if len(np.unique(given)) < 2:
        return rows[:0], rows[:0]
    suspects = find_label_issues(
        given,
        probabilities[rows],
        filter_by="prune_by_class",
        return_indices_ranked_by="self_confidence",
        n_jobs=1,
    )
    predicted = probabilities[rows][suspects].argmax(axis=1)
    is_other = predicted != given[suspects]
    return rows[suspects[is_other]], kept[predicted[is_other]]


def label_agreement(probabilities: np.ndarray, labels: np.ndarray, kept: np.ndarray) -> float:
    """Return the share of the held-out images whose most likely class is their label.

    See ``predict_out_of_fold``. NaN if there is none.
    """
    rows = np.flatnonzero(~np.isnan(probabilities).any(axis=1))
    if not len(rows) or not len(kept):
        return np.nan
    return float((kept[probabilities[rows].argmax(axis=1)] == labels[rows]).mean())


def class_predictions(
    probabilities: np.ndarray, labels: np.ndarray, kept: np.ndarray
) -> pd.DataFrame:
    """Return the prediction for each held-out image (see ``predict_out_of_fold``).

    Returns:
        By position: ``predicted`` (the most likely label), ``confidence`` (its probability),
        ``label_confidence`` (probability of the given label: the self-confidence of confident
        learning).
    """
    rows = (
        np.flatnonzero(~np.isnan(probabilities).any(axis=1))
        if len(kept) > 1
        else np.empty(0, dtype=int)
    )
    held_out = probabilities[rows]
    given = np.searchsorted(kept, labels[rows])
    best = held_out.argmax(axis=1) if len(rows) else rows
    positions = np.arange(len(rows))
    columns = {
        "predicted": kept[best],
        "confidence": held_out[positions, best],
        "label_confidence": held_out[positions, given],
    }
    return pd.DataFrame(columns, index=rows)


def two_sample_auc(first: np.ndarray, second: np.ndarray, sets: np.ndarray) -> tuple[float, float]:
    """Measure how well a linear model separates two samples, out of fold.

    This is a classifier two-sample test (Lopez-Paz & Oquab 2017).

    Args:
        first: features ``[n, d]``.
        second: features ``[m, d]``.
        sets: int ``[n + m]``, equal for near-duplicates.

    Returns:
        The area under the ROC curve (0.5: they are alike; NaN: too many are near-duplicates), and
        its standard error under the hypothesis that they are alike.
    """
    is_second = np.repeat([0, 1], [len(first), len(second)])
    reduced = _reduce(np.concatenate([first, second]))
    scores = np.full(len(is_second), np.nan)
    for fitted, held_out in stratified_folds(is_second, sets):
        model = _make_classifier("balanced").fit(
            reduced[_subsample(fitted)], is_second[_subsample(fitted)]
        )
        scores[held_out] = model.decision_function(reduced[held_out])
    error = np.sqrt((len(is_second) + 1) / (12 * len(first) * len(second)))
    judged_rows = ~np.isnan(scores)
    auc = (
        roc_auc_score(is_second[judged_rows], scores[judged_rows])
        if len(np.unique(is_second[judged_rows])) == 2
        else np.nan
    )
    return float(auc), float(error)


def find_outliers(stages: Sequence[np.ndarray], sets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find images far from all other images, the farthest first.

    Args:
        stages: features ``[n, d]`` of each stage.
        sets: int ``[n]``, equal for near-duplicates, of which only the first one counts.

    Returns:
        Positions, and the distance of each in robust deviations, the mean over the stages.
    """
    first = np.unique(sets, return_index=True)[1]
    if len(first) <= 4 * _NEIGHBOURS:
        return first[:0], np.empty(0)
    score = np.mean([_compute_remoteness(features[first]) for features in stages], axis=0)
    order = np.argsort(-score)
    order = order[score[order] > _FAR_DEVIATIONS]
    return first[order], score[order]


def _compute_remoteness(features: np.ndarray) -> np.ndarray:
    """Return the log of each image's mean distance to its neighbours, in robust deviations.

    The deviations are from the median. Features are scaled to unit length. If each feature were
    scaled separately, those that hardly ever respond would decide.
    """
    unit = normalize(features)
    sample = unit[_subsample(np.arange(len(unit)))]
    reduced = (
        PCA(min(_DIMENSIONS, *sample.shape), svd_solver="randomized", random_state=0)
        .fit(sample)
        .transform(unit)
    )
    nearest = NearestNeighbors(n_neighbors=_NEIGHBOURS + 1).fit(reduced)
    distance: np.ndarray = np.log(
        np.maximum(nearest.kneighbors(reduced)[0][:, 1:].mean(axis=1), 1e-9)
    )
    deviation = 1.4826 * np.median(np.abs(distance - np.median(distance)))
    deviations: np.ndarray = (distance - np.median(distance)) / max(deviation, 1e-6)
    return deviations


def fit_probe(
    stage: str,
    features: np.ndarray,
    labels: np.ndarray,
    sets: np.ndarray,
    train: np.ndarray,
    val: np.ndarray,
) -> Probe:
    """Fit a linear model to one stage's features of training images, and evaluate it on validation.

    Args:
        stage: name of the stage.
        features: ``[n, d]``.
        labels: int ``[n]``.
        sets: int ``[n]``, equal for near-duplicates and images of one group, which count once in
            the standard error.
        train: positions of the training images.
        val: positions of the validation images.
    """
    reduced = _reduce(features, fitted_on=train)
    sample = _subsample(train)
    correct = (
        _make_classifier().fit(reduced[sample], labels[sample]).predict(reduced[val]) == labels[val]
    )
    accuracy, images = float(correct.mean()), float(effective_images(correct[None], sets[val])[0])
    error = np.sqrt(max(accuracy * (1 - accuracy), 1 / images**2) / images)
    return Probe(stage, accuracy, float(error))


def find_nearest_of_class(
    features: np.ndarray, labels: np.ndarray, positions: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """Return for each position the nearest image of the wanted class in feature space.

    Args:
        features: ``[n, d]``.
        labels: int ``[n]``.
        positions: int ``[m]``.
        wanted: int ``[m]``, the class for each position.
    """
    reduced = _reduce(features)
    nearest_positions = np.empty(len(positions), dtype=int)
    for label in np.unique(wanted):
        members = np.setdiff1d(np.flatnonzero(labels == label), positions)
        members = members if len(members) else np.flatnonzero(labels == label)
        selected = np.flatnonzero(wanted == label)
        nearest = (
            NearestNeighbors(n_neighbors=1)
            .fit(reduced[members])
            .kneighbors(reduced[positions[selected]])[1][:, 0]
        )
        nearest_positions[selected] = members[nearest]
    return nearest_positions


def _make_classifier(class_weight: str | None = None) -> LogisticRegression:
    return LogisticRegression(C=1.0, max_iter=300, class_weight=class_weight)


def _subsample(positions: np.ndarray) -> np.ndarray:
    if len(positions) <= _MOST_FITTED:
        return positions
    return np.sort(np.random.default_rng(0).choice(positions, _MOST_FITTED, replace=False))


def _reduce(features: np.ndarray, fitted_on: np.ndarray | None = None) -> np.ndarray:
    """Return the principal components of the features ``[n, ≤128]``, without regard to labels.

    The components share one scale, that of the first. If each were scaled separately, the last
    ones, mostly noise, would count for as much. Nor are the features scaled separately before
    (``logistic.py``).
    """
    sample = features[_subsample(np.arange(len(features)) if fitted_on is None else fitted_on)]
    directions = min(_DIMENSIONS, *sample.shape)
    pca = PCA(directions, svd_solver="randomized", random_state=0)
    scale = max(float(pca.fit_transform(sample)[:, 0].std()), 1e-6)
    components: np.ndarray = pca.transform(features) / scale
    return components.astype(np.float32)
