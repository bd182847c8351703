"""Long work that says how far it is: a generator of steps, which returns its result."""

from collections.abc import Callable, Generator
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Step(NamedTuple):
    """How far work is.

    Attributes:
        done: images, bytes, … so far.
        total: how many in all; None where nobody knows.
        phase: a key of ``PHASE_WORDS``; empty where the work has one phase only.
    """

    done: int
    total: int | None
    phase: str = ""


Work = Generator[Step, None, T]


def finish(work: Work[T], on_step: Callable[[Step], None] | None = None) -> T:
    """Do the work to its end, and return its result.

    Args:
        on_step: gets each step; where it raises, the work is closed.
    """
    try:
        while True:
            try:
                step = next(work)
            except StopIteration as finished:
                result: T = finished.value
                return result
            if on_step:
                on_step(step)
    finally:
        work.close()


def in_phase(phase: str, work: Work[T], before: int = 0, total: int | None = None) -> Work[T]:
    """The same work, as one phase of longer work: steps that have no phase get this one.

    Args:
        before: how much of the phase was done before this work.
        total: how much the phase is in all; as the work says when None.
    """
    try:
        while True:
            try:
                step = next(work)
            except StopIteration as finished:
                result: T = finished.value
                return result
            if step.phase:
                yield step
            else:
                yield Step(before + step.done, step.total if total is None else total, phase)
    finally:
        work.close()
