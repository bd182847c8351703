"""torch's random states, which are one per device and shared by all threads.

One thread at a time uses a state, and only while it draws.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import torch

_locks = {"cpu": RLock(), "cuda": RLock(), "mps": RLock()}


def make_generator(seed: int, kind: str = "cpu") -> torch.Generator:
    """Return a generator on a kind of device whose numbers follow from ``seed`` alone.

    Meant for ``use_generator``.
    """
    return torch.Generator(kind).manual_seed(seed)


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Return the seed of a run's step on a rank, different for each seed, step and rank.

    On the CPU torch looks at the low 32 bits only.
    """
    # Knuth's multiplier keeps the steps of different seeds far apart. The other one keeps ranks
    # apart.
    return (seed * 2_654_435_761 + rank * 2_246_822_507 + step) % 2**32


@contextmanager
def use_generator(numbers: torch.Generator) -> Iterator[None]:
    """Make torch draw from the generator ``numbers`` on its device within the block.

    The next block continues where the last one stopped. Afterwards torch's own state is as before.
    Draws on other devices are not affected.
    """
    kind = numbers.device.type
    with _locks[kind]:
        default = _default_generator(kind)
        previous_state = default.get_state()
        default.set_state(numbers.get_state())
        try:
            yield
        finally:
            numbers.set_state(default.get_state())
            default.set_state(previous_state)


@contextmanager
def use_seed(seed: int) -> Iterator[None]:
    """Make torch's random numbers on the CPU follow from ``seed`` alone within the block.

    Afterwards torch's own state is as before.
    """
    with use_generator(make_generator(seed)):
        yield


def _default_generator(kind: str) -> torch.Generator:
    """Return torch's default generator on a kind of device."""
    if kind == "cuda":
        return torch.cuda.default_generators[torch.cuda.current_device()]
    if kind == "mps":
        return torch.mps._get_default_mps_generator()
    return torch.default_generator
