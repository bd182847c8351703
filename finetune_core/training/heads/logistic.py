"""Logistic regression by L-BFGS: a linear probe whose L2 penalty is chosen by cross-validation.

The objective is that of scikit-learn's ``LogisticRegression``. ``C`` is the inverse strength of
the penalty: the mean cross-entropy of n images, plus ``|weight|² / (2 C n)``. The bias is not
penalised. With two classes scikit-learn fits a single weight vector ``w``, and ``|weight|²`` is
``|w|²``.

Features are centred and divided by one common deviation, which is folded into weight and bias.
They are not standardised one by one: standardisation makes features that hardly vary, of which few
images say nothing, count as much as all others. The table compares the test accuracy in percent of
this probe on standardised features with that on these features, with EfficientNet-Lite0 at 96
pixels and one draw of images each. The scale was chosen on these sets among four. Other networks
were not measured.

================================  ============  ============
training images                   100           500
================================  ============  ============
letters in fonts                  45.7  87.0    94.5  95.2
drawn shapes                      64.0  71.5    82.3  84.0
gratings under noise              65.2  78.3    89.8  91.3
digits                            57.1  63.2    79.9  82.7
emoji by kind                     68.7  72.3    79.3  79.2
cut-outs of photographs           80.7  81.5    82.8  81.7
================================  ============  ============
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.nn.functional import cross_entropy, log_softmax, one_hot

from finetune_core.data.threads import count_usable_cores
from finetune_core.errors import DataError
from finetune_core.training.data_pipeline.batches import disable_helper_threads
from finetune_core.training.events import Candidate
from finetune_core.training.heads.folds import FOLDS, Fold, stratified_folds
from finetune_core.work import Step, Work, finish

# Values of C, the strongest penalty first.
GRID = tuple(10 ** (half / 2) for half in range(-10, 3))
# Images. The best penalty hardly depends on any more of them, and each fit would take longer.
MOST_CHOSEN_ON = 5_000
# Number of images from which on fewer folds suffice.
_MANY, _FEWER_FOLDS = 2_000, 3
# Value of C where there are too few images to choose by.
_FALLBACK = 1e-2
# The path ends after ``_WORSE`` values of C in a row whose loss is higher than the lowest by more
# than the share ``_CLEARLY``. So weaker penalties, which take the longest, are not tried. Smaller
# differences are chance, above all at strong penalties, where every head predicts the class
# frequencies.
_WORSE, _CLEARLY = 2, 0.01
# Iterations between two steps of progress, and the largest number of one fit.
_FEW, _MOST = 10, 500
# A fit ends once ``_FEW`` iterations have lowered the objective by less than this share.
_CHOOSING, _FINAL = 1e-4, 1e-6


@dataclass(frozen=True)
class Linear:
    """A linear classifier with ``weight`` ``[classes, features]`` and ``bias`` ``[classes]``."""

    weight: torch.Tensor
    bias: torch.Tensor

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits ``[n, classes]`` of features ``[n, features]``."""
        return torch.addmm(self.bias, features, self.weight.T)


@dataclass(frozen=True)
class Choice:
    """Result of a choice by cross-validation.

    Attributes:
        value: The chosen value.
        candidates: The values in the order in which they were tried. Empty where there are too few
            images.
        images: Number of images it was chosen on.
        folds: Number of folds of these images.
        start: An approximation of the best fit, on scaled features.
    """

    value: float
    candidates: tuple[Candidate, ...]
    images: int
    folds: int
    start: Linear | None = None


@dataclass(frozen=True)
class Scale:
    """Scaling ``(x - mean) / std``: centred features, divided by one common deviation.

    ``mean`` has shape ``[features]``, ``std`` is one number.
    """

    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def fit(cls, features: torch.Tensor) -> "Scale":
        """Fit the scaling to features ``[n, features]``."""
        variance, mean = torch.var_mean(features, dim=0, correction=0)
        std = variance.mean().sqrt()
        return cls(mean, torch.where(std > 0, std, torch.ones_like(std)))

    def transform(self, features: torch.Tensor) -> torch.Tensor:
        """Scale features ``[n, features]``."""
        return (features - self.mean) / self.std

    def fold_into(self, head: Linear) -> Linear:
        """Fold the scaling into a classifier, which then takes features as they are."""
        weight = head.weight / self.std
        return Linear(weight, head.bias - weight @ self.mean)


def objective(head: Linear, features: torch.Tensor, labels: torch.Tensor, c: float) -> float:
    """Return the value that a fit minimises, on scaled features."""
    loss = cross_entropy(head.logits(features), labels)
    return float(
        loss
        + _compute_penalty_strength(len(head.weight), len(labels), c) * _sum_squares(head.weight)
    )


def _compute_penalty_strength(classes: int, images: int, c: float) -> float:
    """Return the factor of the sum of squared weights in the objective."""
    # A softmax of two classes divides w into -w/2 and w/2, whose squares sum to |w|²/2.
    return (2 if classes == 2 else 1) / (2 * c * images)


def _sum_squares(weight: torch.Tensor) -> torch.Tensor:
    return weight.square().sum()


def linear_probe(
    features: torch.Tensor, labels: torch.Tensor, sets: np.ndarray, classes: int, seed: int
) -> Work[tuple[Linear, Choice]]:
    """Choose the penalty by cross-validation on these images, then fit all of them.

    Args:
        features: float32 ``[n, d]``, on the device that computes.
        labels: int64 ``[n]``, on the same device.
        sets: int ``[n]``, equal for near-duplicates.
        classes: Number of classes.
        seed: Seed of the folds.

    Yields:
        Steps of the phases ``choose``, which counts fits, and ``fit``.
    """
    choice = yield from _choose_penalty(features, labels, sets, classes, seed)
    scale = Scale.fit(features)
    head = yield from _refit(scale.transform(features), labels, classes, choice)
    return scale.fold_into(head), choice


def fit_logistic(
    features: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    c: float,
    start: Linear | None = None,
    tolerance: float = _FINAL,
) -> Work[Linear]:
    """Fit a classifier with one penalty.

    Args:
        features: Scaled features, ``[n, d]``.
        labels: int64 ``[n]``, on the features' device.
        classes: Number of classes.
        c: Inverse strength of the penalty, scikit-learn's ``C``.
        start: Initial weights and bias, zero by default.
        tolerance: Relative decrease of the objective in ``_FEW`` iterations below which the fit
            ends.
    """
    theta = _join_parameters(start, features, classes).requires_grad_()
    one_hot_labels = one_hot(labels, classes).to(features.dtype)
    strength = _compute_penalty_strength(classes, len(labels), c)
    optimizer = torch.optim.LBFGS(
        [theta],
        max_iter=_FEW,
        history_size=10,
        tolerance_grad=min(1e-6, tolerance),
        # The first step is so short that the fit would end there.
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    @torch.no_grad()
    def closure() -> torch.Tensor:
        weight, bias = theta[:, :-1], theta[:, -1]
        log_shares = log_softmax(torch.addmm(bias, features, weight.T), dim=1)
        error = (log_shares.exp() - one_hot_labels) / len(labels)
        theta.grad = torch.cat(
            [error.T @ features + 2 * strength * weight, error.sum(0)[:, None]], dim=1
        )
        return -(log_shares * one_hot_labels).sum() / len(labels) + strength * _sum_squares(weight)

    last_loss = float("inf")
    for done in range(0, _MOST, _FEW):
        yield Step(done, None, "fit")
        # ``step`` returns its first evaluation, at the point where the step before ended.
        loss = float(optimizer.step(closure))
        if last_loss - loss < tolerance * abs(last_loss) and done:
            break
        last_loss = loss
    theta = theta.detach()
    return Linear(theta[:, :-1].contiguous(), theta[:, -1].contiguous())


def _join_parameters(start: Linear | None, features: torch.Tensor, classes: int) -> torch.Tensor:
    if start is None:
        return features.new_zeros(classes, features.shape[1] + 1)
    return torch.cat([start.weight, start.bias[:, None]], dim=1)


@dataclass(frozen=True)
class _Fold:
    """One fold, scaled by the images to fit on. The others are held out."""

    features: torch.Tensor
    labels: torch.Tensor
    held_out: torch.Tensor
    held_labels: torch.Tensor

    @classmethod
    def split(
        cls, features: torch.Tensor, labels: torch.Tensor, fit: np.ndarray, out: np.ndarray
    ) -> "_Fold":
        inside, outside = (torch.from_numpy(rows).to(labels.device) for rows in (fit, out))
        scale = Scale.fit(features[inside])
        return cls(
            scale.transform(features[inside]),
            labels[inside],
            scale.transform(features[outside]),
            labels[outside],
        )


def _choose_penalty(
    features: torch.Tensor, labels: torch.Tensor, sets: np.ndarray, classes: int, seed: int
) -> Work[Choice]:
    """Choose the penalty with the lowest mean cross-entropy on held-out images."""
    subset = _draw_subset(len(labels), seed)
    parts = _split_folds(labels.cpu().numpy()[subset], sets[subset], seed)
    folds = [_Fold.split(features, labels, subset[fit], subset[out]) for fit, out in parts]
    trials, start = yield from _search_penalties(folds, classes)
    candidates = tuple(one.candidate() for one in trials)
    chosen = min(candidates, key=lambda one: one["loss"])["value"] if candidates else _FALLBACK
    return Choice(chosen, candidates, len(subset), len(folds), start)


def cross_validate_probe(
    features: torch.Tensor, labels: torch.Tensor, sets: np.ndarray, classes: int, seed: int
) -> Work[np.ndarray]:
    """Return which images a linear probe classifies correctly while they are held out.

    The probe has seen neither an image nor its near-duplicates. The penalty for the images of a
    fold is chosen by those of the other folds, so that no image has a say in its own.

    Args:
        features: As for ``linear_probe``.
        labels: As for ``linear_probe``.
        sets: As for ``linear_probe``.
        classes: Number of classes.
        seed: Seed of the folds.

    Yields:
        Steps of the phase ``choose``.

    Returns:
        bool ``[n]``. False where an image can be held out of no fold.

    Raises:
        DataError: If there are too few images to cross-validate.
    """
    parts = split_probe_folds(labels.cpu().numpy(), sets, seed)
    trials, _ = yield from _search_penalties(
        [_Fold.split(features, labels, fit, out) for fit, out in parts], classes
    )
    losses, right = (
        torch.stack([getattr(one, name) for one in trials]).cpu().numpy()
        for name in ("losses", "right")
    )
    fold = np.repeat(np.arange(len(parts)), [len(out) for _, out in parts])
    is_correct = np.zeros(len(labels), dtype=bool)
    for number, (_, out) in enumerate(parts):
        chosen = losses[:, fold != number].mean(axis=1).argmin()
        is_correct[out] = right[chosen, fold == number]
    return is_correct


def split_probe_folds(labels: np.ndarray, sets: np.ndarray, seed: int) -> list[Fold]:
    """Return the folds of ``cross_validate_probe``.

    Raises:
        DataError: If there are too few images for two.
    """
    parts = _split_folds(labels, sets, seed)
    if len(parts) < 2:
        raise DataError(
            "There are too few training images to cross-validate a linear probe: it takes at least "
            "two of a class that are not near-duplicates, and two classes."
        )
    return parts


def _split_folds(labels: np.ndarray, sets: np.ndarray, seed: int) -> list[Fold]:
    return stratified_folds(
        labels, sets, seed, fewest=2, most=FOLDS if len(labels) < _MANY else _FEWER_FOLDS
    )


@dataclass(frozen=True)
class _Trial:
    """One value of C, evaluated on the held-out images of all folds, fold by fold.

    Attributes:
        losses: Cross-entropy, float ``[n]``.
        right: Whether an image is classified correctly, bool ``[n]``.
    """

    c: float
    losses: torch.Tensor
    right: torch.Tensor

    def candidate(self) -> Candidate:
        return {
            "value": self.c,
            "loss": float(self.losses.mean()),
            "accuracy": float(self.right.float().mean()),
        }


def _search_penalties(
    folds: Sequence[_Fold], classes: int
) -> Work[tuple[list[_Trial], Linear | None]]:
    """Try values of C, the strongest penalty first, as long as that is worthwhile.

    Each fit begins where that of the next stronger penalty ended.

    Returns:
        The values tried, and an approximation of the fit with the best of them.
    """
    if not folds:
        return [], None
    trials: list[_Trial] = []
    heads: Sequence[Linear | None] = [None] * len(folds)
    num_worse, lowest, start = 0, float("inf"), None
    with _make_pool(len(folds), folds[0].labels.device) as pool:
        for c in GRID:
            fits: list[Linear] = []
            for head in pool.map(partial(_fit_fold, classes, c), folds, heads):
                yield Step(len(trials) * len(folds) + len(fits), len(GRID) * len(folds), "choose")
                fits.append(head)
            heads = fits
            trials.append(_score(c, folds, fits))
            loss = float(trials[-1].losses.mean())
            num_worse = num_worse + 1 if loss > (1 + _CLEARLY) * lowest else 0
            if loss < lowest:
                lowest, start = loss, _average_heads(fits)
            elif num_worse >= _WORSE:
                break
    return trials, start


def _make_pool(fits: int, device: torch.device) -> ThreadPoolExecutor:
    """Return threads that do each fit by themselves.

    Products as small as these take longer when several threads share each, and very long when other
    programs compute as well.
    """
    threads = min(count_usable_cores(), fits) if device.type == "cpu" else 1
    return ThreadPoolExecutor(threads, thread_name_prefix="fit", initializer=disable_helper_threads)


def _refit(
    features: torch.Tensor, labels: torch.Tensor, classes: int, choice: Choice
) -> Work[Linear]:
    """Fit all images with the chosen penalty."""
    fit = fit_logistic(features, labels, classes, choice.value, choice.start)
    if len(labels) > MOST_CHOSEN_ON:
        return (yield from fit)
    yield Step(0, None, "fit")
    with _make_pool(1, labels.device) as pool:
        return pool.submit(finish, fit).result()


def _fit_fold(classes: int, c: float, fold: _Fold, start: Linear | None) -> Linear:
    return finish(fit_logistic(fold.features, fold.labels, classes, c, start, _CHOOSING))


def _score(c: float, folds: Sequence[_Fold], heads: Sequence[Linear]) -> _Trial:
    logits = torch.cat(
        [head.logits(fold.held_out) for head, fold in zip(heads, folds, strict=True)]
    )
    labels = torch.cat([fold.held_labels for fold in folds])
    return _Trial(c, cross_entropy(logits, labels, reduction="none"), logits.argmax(1) == labels)


def _average_heads(heads: Sequence[Linear]) -> Linear:
    return Linear(
        torch.stack([one.weight for one in heads]).mean(0),
        torch.stack([one.bias for one in heads]).mean(0),
    )


def _draw_subset(images: int, seed: int) -> np.ndarray:
    if images <= MOST_CHOSEN_ON:
        return np.arange(images)
    return np.sort(np.random.default_rng(seed).choice(images, MOST_CHOSEN_ON, replace=False))
