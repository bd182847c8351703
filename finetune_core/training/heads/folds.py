"""Cross-validation that keeps near-duplicates in one fold."""

import warnings

import numpy as np

FOLDS = 5

Fold = tuple[np.ndarray, np.ndarray]


def stratified_folds(
    labels: np.ndarray, sets: np.ndarray, seed: int = 0, fewest: int = FOLDS, most: int = FOLDS
) -> list[Fold]:
    """Split images into stratified folds, with near-duplicates in one of them.

    There are as many folds as sets, and as images of the largest class, but at most ``most``. A
    fold without two labels to fit on is left out.

    Args:
        labels: int ``[n]``.
        sets: int ``[n]``, equal for near-duplicates.
        seed: Seed of the shuffle.
        fewest: Return no folds where fewer than this could be made.
        most: The largest number of folds.

    Returns:
        Pairs of (positions to fit on, positions to evaluate on).
    """
    # scikit-learn takes long to import.
    from sklearn.model_selection import StratifiedGroupKFold

    folds = min(most, len(np.unique(sets)), int(np.bincount(labels).max(initial=0)))
    if folds < fewest:
        return []
    with warnings.catch_warnings():
        # It warns that a class has fewer images than there are folds.
        warnings.simplefilter("ignore", UserWarning)
        splits = list(
            StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(labels, labels, sets)
        )
    return [
        (fit, held_out)
        for fit, held_out in splits
        if len(held_out) and len(np.unique(labels[fit])) > 1
    ]
