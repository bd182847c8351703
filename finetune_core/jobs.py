"""Long work beside the page that asked for it: each piece in a thread of its own, known by a key to everyone in the process."""

import time
from collections.abc import Callable
from threading import Event, Lock, Thread
from typing import Any

from finetune_core.work import Step, Work, finish


class _Stopped(Exception):
    """Somebody asked the job to stop."""


class Job:
    """One piece of work. It ends by itself or by ``stop``, whoever looks on or goes away.

    Attributes:
        text: what it does, in words.
        kept: whether what was done until it is stopped is of use.
        progress, since: its latest step, and when (``time.monotonic``) the phase of that step began.
        result: what the work returned, once it has ended well.
        error: what it raised.
    """

    def __init__(self, text: str, kept: bool = True) -> None:
        self.text, self.kept = text, kept
        self.progress = Step(0, None)
        self.since = time.monotonic()
        self.result: Any = None
        self.error: BaseException | None = None
        self._stop, self._ended = Event(), Event()

    @property
    def working(self) -> bool:
        return not self._ended.is_set()

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop; once it has ended: whether it was stopped."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Ask it to end after the step that it is at."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Until it has ended, or for so long; returns whether it has."""
        return self._ended.wait(seconds)

    def do(self, make: Callable[[], Work[Any]]) -> None:
        """Do the work, in the thread that calls."""
        try:
            self.result = finish(make(), self._note)
            self._stop.clear()  # it came too late
        except _Stopped:
            pass
        except BaseException as error:  # it is raised again where somebody looks on
            self.error = error
        finally:
            self._ended.set()

    def _note(self, step: Step) -> None:
        if (step.phase, step.subject) != (self.progress.phase, self.progress.subject):
            self.since = time.monotonic()
        self.progress = step
        if self.stopping:
            raise _Stopped


class Jobs:
    """The jobs of a process that are going on, by key."""

    def __init__(self) -> None:
        self._going: dict[str, Job] = {}
        self._changing = Lock()

    def start(
        self, key: str, text: str, make: Callable[[], Work[Any]], *, kept: bool = True
    ) -> Job:
        """Begin, unless it is going on already; returns the job."""
        with self._changing:
            self._going = {other: job for other, job in self._going.items() if job.working}
            if key in self._going:
                return self._going[key]
            job = self._going[key] = Job(text, kept)
        Thread(target=job.do, args=(make,), name=f"job: {text}", daemon=True).start()
        return job

    def find(self, key: str) -> Job | None:
        job = self._going.get(key)
        return job if job and job.working else None

    def all(self) -> list[Job]:
        """Those that are going on, the oldest first."""
        with self._changing:
            return [job for job in self._going.values() if job.working]
