"""One run per device at a time, whichever programs of this machine train: a run waits for its turn, and can be stopped meanwhile."""

from collections.abc import Generator

from finetune_core.training.device_turn import WAITING, Turn
from finetune_core.training.events import Event, Progress, RunStopped
from finetune_core.training.loop import StopRequested


def in_turn(
    events: Generator[Event, None, None], device: str
) -> Generator[Event | None, None, None]:
    """A run's events, once nothing else uses that kind of device.

    While it waits it says so once, and then yields None every second: nothing new, but a moment at which it can be stopped.
    """
    reported = False
    with Turn(device) as turn:
        try:
            while not turn.come():
                yield None if reported else Progress(WAITING, 0, 0)
                reported = True
            if reported:
                yield Progress("prepare", 0, 0)
        except StopRequested as request:
            turn.leave()
            yield RunStopped(0, 0, 0.0, request.pause)
            return
        yield from events
