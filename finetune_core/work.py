"""Long work with progress: a generator that yields steps and returns its result."""

from collections.abc import Callable, Generator
from typing import NamedTuple, TypeVar

from finetune_core.errors import explain_memory_errors

T = TypeVar("T")


class Step(NamedTuple):
    """The progress of work.

    Attributes:
        done: images, bytes, … so far.
        total: the total. None where it is unknown.
        phase: a key of ``PHASE_TITLES``. Empty where the work has a single phase.
        subject: the current one of several things. Empty where there is only one.
    """

    done: int
    total: int | None
    phase: str = ""
    subject: str = ""


Work = Generator[Step, None, T]


def finish(work: Work[T], on_step: Callable[[Step], None] | None = None) -> T:
    """Run work to its end, and return its result.

    Args:
        work: the work.
        on_step: called with each step. If it raises, the work is closed.

    Raises:
        OutOfMemory: if memory runs out and the work does not handle that itself.
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


def with_phase(phase: str, work: Work[T], before: int = 0, total: int | None = None) -> Work[T]:
    """Run work as one phase of longer work. Steps without a phase get this one.

    Args:
        phase: the phase.
        work: the work.
        before: amount of the phase that was done before this work.
        total: total of the phase. None: as the work states it.
    """

    def shift(step: Step) -> Step:
        if step.phase:
            return step
        return Step(before + step.done, step.total if total is None else total, phase, step.subject)

    return (yield from _map_steps(shift, work))


def with_subject(subject: str, work: Work[T]) -> Work[T]:
    """Run work as the part that concerns one of several things."""
    return (yield from _map_steps(lambda step: step._replace(subject=subject), work))


def with_fixed_step(step: Step, work: Work[T]) -> Work[T]:
    """Run work as part of longer work that stays at ``step`` meanwhile."""
    return (yield from _map_steps(lambda _: step, work))


def _map_steps(change: Callable[[Step], Step], work: Work[T]) -> Work[T]:
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
