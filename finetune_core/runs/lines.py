"""Reader of a growing ``events.jsonl``.

Whole lines are read and validated. Lines that are no event are skipped and counted.
"""

from dataclasses import dataclass, field
from pathlib import Path

from finetune_core.files import Stamp, describe_problem, file_stamp, open_regular
from finetune_core.formatting import format_bytes, format_number
from finetune_core.training.events import LONGEST_LINE, Row, read_event

_MOST_BYTES = 2**29  # more than a million steps
_MOST_SKIPPED = 10_000  # lines


@dataclass
class EventLines:
    """Reader of a run's events that remembers its position.

    Attributes:
        path: the file.
        skipped: number of lines that are no event.
        problem: reason why the file cannot be read on; empty if it can.
        offset: number of bytes that were read.
        seen: stamp of the file when it was read.
    """

    path: Path
    skipped: int = 0
    problem: str = ""
    offset: int = 0
    seen: Stamp | None = None
    _within: bool = field(default=False, repr=False)  # inside a line that is too long for an event

    def was_replaced(self) -> bool:
        """Return whether the file was replaced by another one, or has become shorter."""
        if not self.offset and not self.problem:
            return False
        now = file_stamp(self.path)
        return now != self.seen and (
            now is None or self.seen is None or now[0] != self.seen[0] or now[1] < self.offset
        )

    def has_changed(self) -> bool:
        """Return whether the file has changed since it was read."""
        return file_stamp(self.path) != self.seen

    def read_new(self) -> list[Row]:
        """Return the events that were written since the last call.

        An unfinished last line is left for the next call.
        """
        seen = file_stamp(self.path)
        if self.problem or (seen and seen == self.seen):
            return []
        rows: list[Row] = []
        try:
            with open(open_regular(self.path), "rb") as file:
                file.seek(self.offset)
                while not self.problem and (chunk := file.read(LONGEST_LINE)):
                    if not self._read_chunk(chunk, rows):
                        break
                    file.seek(self.offset)
        except FileNotFoundError:
            return []
        except OSError as error:
            self.problem = describe_problem(self.path, error)
        if self.offset > _MOST_BYTES:
            self.problem = f"{self.path.name} is larger than {format_bytes(_MOST_BYTES)}"
        self.seen = seen
        return rows

    def _read_chunk(self, chunk: bytes, rows: list[Row]) -> bool:
        """Read the whole lines of a chunk; return False if reading cannot go on now."""
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
        """Count a line that is no event, or contradicts earlier ones."""
        self.skipped += 1
        if self.skipped > _MOST_SKIPPED:
            self.problem = (
                f"more than {format_number(_MOST_SKIPPED)} lines of {self.path.name} are no "
                "events of a run"
            )
