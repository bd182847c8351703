"""Cross-validation that keeps near-duplicates on one side."""

import warnings

import numpy as np

FOLDS = 5

Fold = tuple[np.ndarray, np.ndarray]


def stratified_folds(
    labels: np.ndarray, sets: np.ndarray, seed: int = 0, fewest: int = FOLDS, most: int = FOLDS
) -> list[Fold]:
    """(positions to fit on, positions to evaluate on), near-duplicates on one side; no fold without two labels to fit on.

    As many as there are sets, and images of the largest class, but ``most`` at most.

    Args:
        labels: int ``[n]``. sets: int ``[n]``, equal for near-duplicates.
        fewest: where no more can be made than less than these, none are.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # scikit-learn takes long to import

    folds = min(most, len(np.unique(sets)), int(np.bincount(labels).max(initial=0)))
    if folds < fewest:
        return []
    with warnings.catch_warnings():
        # that a class has fewer images than there are folds
        warnings.simplefilter("ignore", UserWarning)
        found = list(
            StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(labels, labels, sets)
        )
    return [
        (fitted, held_out)
        for fitted, held_out in found
        if len(held_out) and len(np.unique(labels[fitted])) > 1
    ]
