"""Background jobs for pages.

Each job runs in a thread of its own and is known to the whole process by a key.
"""

import time
from collections.abc import Callable
from threading import Event, Lock, Thread
from typing import Any

from finetune_core.work import Step, Work, finish


class _StopRequested(Exception):
    """Raised in a job that was asked to stop."""


class Job:
    """One piece of work. A job ends by itself or by ``stop``, whether or not somebody watches.

    Attributes:
        text: description of the job.
        kept: whether the work done before a stop is useful.
        progress, since: the latest step, and the start of its phase (``time.monotonic``).
        result: the result of the work, once it has succeeded.
        error: the exception that the work raised.
    """

    def __init__(self, text: str, kept: bool = True) -> None:
        self.text, self.kept = text, kept
        self.progress = Step(0, None)
        self.since = time.monotonic()
        self.result: Any = None
        self.error: BaseException | None = None
        self._stop, self._ended = Event(), Event()

    @property
    def is_running(self) -> bool:
        """True until the job has ended."""
        return not self._ended.is_set()

    @property
    def is_stopping(self) -> bool:
        """True if the job was asked to stop. Once it has ended: True if it was stopped."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Ask the job to end after its current step."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the job has ended, or for so many seconds, and return whether it has ended."""
        return self._ended.wait(seconds)

    def run(self, make: Callable[[], Work[Any]]) -> None:
        """Run the work in the calling thread."""
        try:
            self.result = finish(make(), self._on_step)
            self._stop.clear()  # the request came too late
        except _StopRequested:
            pass
        except BaseException as error:  # raised again where somebody watches
            self.error = error
        finally:
            self._ended.set()

    def _on_step(self, step: Step) -> None:
        if (step.phase, step.subject) != (self.progress.phase, self.progress.subject):
            self.since = time.monotonic()
        self.progress = step
        if self.is_stopping:
            raise _StopRequested


class Jobs:
    """The running jobs of a process, by key."""

    def __init__(self) -> None:
        self._running: dict[str, Job] = {}
        self._lock = Lock()

    def start(
        self, key: str, text: str, make: Callable[[], Work[Any]], *, kept: bool = True
    ) -> Job:
        """Start a job unless one with this key is running, and return the job."""
        with self._lock:
            self._running = {other: job for other, job in self._running.items() if job.is_running}
            if key in self._running:
                return self._running[key]
            job = self._running[key] = Job(text, kept)
        Thread(target=job.run, args=(make,), name=f"job: {text}", daemon=True).start()
        return job

    def find(self, key: str) -> Job | None:
        """Return the running job of a key, or None."""
        job = self._running.get(key)
        return job if job and job.is_running else None

    def list_running(self) -> list[Job]:
        """Return the running jobs, oldest first."""
        with self._lock:
            return [job for job in self._running.values() if job.is_running]
