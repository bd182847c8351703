"""Binning of images by confidence, for calibration and its error."""

from typing import Literal

import numpy as np
from scipy import sparse

BINS = 15
_TAILS = (2.5, 97.5)  # percentiles

Binning = Literal["width", "mass"]


def assign_bins(
    confidence: np.ndarray, binning: Binning = "width", bins: int = BINS
) -> tuple[np.ndarray, np.ndarray]:
    """Return the edges of the bins, and the bin of each image.

    Args:
        confidence: float ``[n]``.
        binning: bins of equal ``width`` in confidence, or of equal ``mass`` in images (fewer if
            confidences are equal).
        bins: number of bins.
    """
    if binning == "width":
        edges = np.linspace(0, 1, bins + 1)
    else:
        edges = np.unique(np.quantile(confidence, np.linspace(0, 1, bins + 1)))
    # A bin includes its upper edge, as in Guo et al. 2017; the lowest bin includes both edges.
    return edges, np.clip(np.searchsorted(edges, confidence, "left") - 1, 0, max(0, len(edges) - 2))


def gap_matrix(confidence: np.ndarray, correct: np.ndarray, bin_of: np.ndarray) -> sparse.csr_array:
    """Return a sparse matrix ``[bins, n]`` that gives the calibration error of each bin.

    Its product with the images' weights is the contribution of each bin, with its sign.
    """
    gaps = (correct - confidence) / len(confidence)
    return sparse.csr_array(
        (gaps, (bin_of, np.arange(len(gaps)))), shape=(bin_of.max() + 1, len(gaps))
    )


def ece_interval(gaps: np.ndarray, drawn: np.ndarray) -> tuple[float, float]:
    """Return a 95 % interval of the expected calibration error from bootstrap resamples.

    The error of few images is too large, because chance moves every bin off the diagonal, and that
    of a resample is even larger. Plain percentiles would nearly always miss a small true error. So
    the lower end subtracts all that chance may have moved the bins (by the triangle inequality the
    two errors differ by no more). The upper end is the basic bootstrap's (Davison & Hinkley 1997),
    which corrects for the bias. It is never below the error itself.

    Args:
        gaps: ``[bins]``.
        drawn: ``[bins, resamples]``.
    """
    error, errors = np.abs(gaps).sum(), np.abs(drawn).sum(0)
    shifts = np.abs(drawn - gaps[:, None]).sum(0)
    low = max(0.0, error - np.percentile(shifts, _TAILS[1]))
    high = min(1.0, max(error, 2 * error - np.percentile(errors, _TAILS[0])))
    return float(low), float(high)
