"""Turns of runs: one run per device at a time, across all programs of this machine.

A run waits for its turn, and can be stopped meanwhile.
"""

from collections.abc import Generator

from finetune_core.training.devices.turn import WAITING, Turn
from finetune_core.training.events import Event, Progress, RunStopped
from finetune_core.training.loop import StopRequested


def wait_for_turn(
    events: Generator[Event, None, None], device: str
) -> Generator[Event | None, None, None]:
    """Wait for the device, then yield the run's events.

    While the run waits, this is reported once. After that None is yielded every second, which is a
    moment at which the run can be stopped.
    """
    reported = False
    with Turn(device) as turn:
        try:
            while not turn.acquire():
                yield None if reported else Progress(WAITING, 0, 0)
                reported = True
            if reported:
                yield Progress("prepare", 0, 0)
        except StopRequested as request:
            turn.release()
            yield RunStopped(0, 0, 0.0, request.pause)
            return
        yield from events
