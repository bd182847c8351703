"""torch's one random state, shared by all threads of the process: used by one of them at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import torch

_lock = RLock()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block torch's randomness follows from ``seed`` alone; afterwards it is as it was before."""
    with _lock, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
