"""``events.jsonl`` as it grows: whole lines, each validated; what is no event is skipped and counted."""

from dataclasses import dataclass, field
from pathlib import Path

from finetune_core.files import Stamp, open_regular, problem_with, stamp
from finetune_core.formatting import number, size
from finetune_core.training.events import LONGEST_LINE, Row, read_event

_MOST_BYTES = 2**29  # a million steps and more
_MOST_SKIPPED = 10_000  # lines


@dataclass
class EventLines:
    """How far a run's events were read.

    Attributes:
        skipped: lines that are no event.
        problem: why the file cannot be read on; empty where it can.
        offset: bytes that were read.
        seen: the file as it was then.
    """

    path: Path
    skipped: int = 0
    problem: str = ""
    offset: int = 0
    seen: Stamp | None = None
    _within: bool = field(default=False, repr=False)  # a line that is too long to be one

    def replaced(self) -> bool:
        """Whether the file is another one than was read so far, or has become shorter."""
        if not self.offset and not self.problem:
            return False
        now = stamp(self.path)
        return now != self.seen and (
            now is None or self.seen is None or now[0] != self.seen[0] or now[1] < self.offset
        )

    def changed(self) -> bool:
        """Whether the file is not as it was when it was read."""
        return stamp(self.path) != self.seen

    def new(self) -> list[Row]:
        """The events that were written since the last time; an unfinished last line is left for the next time."""
        seen = stamp(self.path)
        if self.problem or (seen and seen == self.seen):
            return []
        rows: list[Row] = []
        try:
            with open(open_regular(self.path), "rb") as file:
                file.seek(self.offset)
                while not self.problem and (chunk := file.read(LONGEST_LINE)):
                    if not self._take(chunk, rows):
                        break
                    file.seek(self.offset)
        except FileNotFoundError:
            return []
        except OSError as error:
            self.problem = problem_with(self.path, error)
        if self.offset > _MOST_BYTES:
            self.problem = f"{self.path.name} is larger than {size(_MOST_BYTES)}"
        self.seen = seen
        return rows

    def _take(self, chunk: bytes, rows: list[Row]) -> bool:
        """Read the whole lines of a part of the file; False where there is none, and none can come yet."""
        end = chunk.rfind(b"\n") + 1
        if not end:
            if len(chunk) < LONGEST_LINE:
                return False
            self._within = True
        self.offset += end or len(chunk)
        for line in chunk[:end].split(b"\n")[:-1]:
            try:
                if self._within:
                    raise ValueError("too long")
                rows.append(read_event(line))
            except ValueError:
                self.skip()
            self._within = False
            if self.problem:
                break
        return self.offset <= _MOST_BYTES

    def skip(self) -> None:
        """Count a line that says nothing, or what cannot be."""
        self.skipped += 1
        if self.skipped > _MOST_SKIPPED:
            self.problem = (
                f"more than {number(_MOST_SKIPPED)} lines of {self.path.name} are no "
                "events of a run"
            )
