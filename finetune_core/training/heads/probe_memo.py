"""Memo of the linear probes that this process has fitted, so that equal ones are fitted once.

The runs of a profile all begin with the same probe as their head, and fitting it can take longer
than training one of them. A fit follows from its images alone, so the result is the same.
"""

import hashlib
from collections import OrderedDict
from threading import Lock

import numpy as np
import torch

from finetune_core.training.heads.logistic import Choice, Linear, linear_probe
from finetune_core.work import Work

_MOST = 8  # heads of a few megabytes each
_probes: OrderedDict[bytes, tuple[Linear, Choice]] = OrderedDict()
_lock = Lock()


def fit_once(
    features: torch.Tensor, labels: torch.Tensor, sets: np.ndarray, classes: int, seed: int
) -> Work[tuple[Linear, Choice]]:
    """Fit a linear probe, or return the one that was fitted to the same images before.

    Args:
        features: As for ``linear_probe``.
        labels: As for ``linear_probe``.
        sets: As for ``linear_probe``.
        classes: As for ``linear_probe``.
        seed: As for ``linear_probe``.

    Yields:
        The steps of ``linear_probe``. None where the probe is known.
    """
    key = _digest(features, labels, sets, classes, seed)
    with _lock:
        fit = _probes.get(key)
    if fit is None:
        fit = yield from linear_probe(features, labels, sets, classes, seed)
    with _lock:
        _probes[key] = fit
        _probes.move_to_end(key)
        while len(_probes) > _MOST:
            _probes.popitem(last=False)
    return fit


def clear() -> None:
    """Clear the memo, so that every probe is fitted again."""
    with _lock:
        _probes.clear()


def _digest(
    features: torch.Tensor, labels: torch.Tensor, sets: np.ndarray, classes: int, seed: int
) -> bytes:
    settings = (tuple(features.shape), str(features.device), classes, seed)
    digest = hashlib.blake2b(repr(settings).encode())
    for array in (features.cpu().numpy(), labels.cpu().numpy(), sets):
        digest.update(np.ascontiguousarray(array).reshape(-1).data)
    return digest.digest()
