"""Long work that says how far it is: a generator of steps, which returns its result."""

from collections.abc import Callable, Generator
from typing import NamedTuple, TypeVar

from finetune_core.errors import explain_memory_errors

T = TypeVar("T")


class Step(NamedTuple):
    """How far work is.

    Attributes:
        done: images, bytes, … so far.
        total: how many in all; None where nobody knows.
        phase: a key of ``PHASE_WORDS``; empty where the work has one phase only.
        subject: what of several things is worked on; empty where there is one only.
    """

    done: int
    total: int | None
    phase: str = ""
    subject: str = ""


Work = Generator[Step, None, T]


def finish(work: Work[T], on_step: Callable[[Step], None] | None = None) -> T:
    """Do the work to its end, and return its result.

    Args:
        on_step: gets each step; where it raises, the work is closed.

    Raises:
        OutOfMemory: when memory runs out and the work does not explain it itself.
    """
    try:
        while True:
            try:
                with explain_memory_errors():
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

    def placed(step: Step) -> Step:
        if step.phase:
            return step
        return Step(before + step.done, step.total if total is None else total, phase, step.subject)

    return (yield from _mapped(placed, work))


def with_subject(subject: str, work: Work[T]) -> Work[T]:
    """The same work, as that on one of several things."""
    return (yield from _mapped(lambda step: step._replace(subject=subject), work))


def as_step(step: Step, work: Work[T]) -> Work[T]:
    """The same work as a part of longer work that is at ``step``, however far the part is."""
    return (yield from _mapped(lambda _: step, work))


def _mapped(change: Callable[[Step], Step], work: Work[T]) -> Work[T]:
    try:
        while True:
            try:
                step = next(work)
            except StopIteration as finished:
                result: T = finished.value
                return result
            yield change(step)
    finally:
        work.close()
