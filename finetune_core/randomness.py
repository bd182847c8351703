"""torch's random states, one per device and shared by all threads: used by one of them at a time, and only while it draws."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import torch

_locks = {"cpu": RLock(), "cuda": RLock(), "mps": RLock()}


def stream(seed: int, kind: str = "cpu") -> torch.Generator:
    """Random numbers on a kind of device that follow from ``seed`` alone, for ``drawing_from``."""
    return torch.Generator(kind).manual_seed(seed)


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Of what a run's step draws on a rank; different for each seed, step and rank. On a processor torch looks at the low 32 bits alone."""
    # Knuth's multiplier keeps the steps of different seeds far apart, another one those of different ranks.
    return (seed * 2_654_435_761 + rank * 2_246_822_507 + step) % 2**32


@contextmanager
def drawing_from(numbers: torch.Generator) -> Iterator[None]:
    """Within the block torch draws from ``numbers`` on their device, block after block where they were left; afterwards its own
    state is as it was before. Draws on other devices are not touched."""
    kind = numbers.device.type
    with _locks[kind]:
        own = _own(kind)
        before = own.get_state()
        own.set_state(numbers.get_state())
        try:
            yield
        finally:
            numbers.set_state(own.get_state())
            own.set_state(before)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block torch's randomness on the processor follows from ``seed`` alone; afterwards it is as it was before."""
    with drawing_from(stream(seed)):
        yield


def _own(kind: str) -> torch.Generator:
    """What torch draws from on a kind of device."""
    if kind == "cuda":
        return torch.cuda.default_generators[torch.cuda.current_device()]
    if kind == "mps":
        return torch.mps._get_default_mps_generator()
    return torch.default_generator
