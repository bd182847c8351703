"""The steps of a run, in the resolution that a curve needs."""

from dataclasses import dataclass, field

from finetune_core.training.events import Row

_MOST_STEPS, _RECENT_STEPS, _MOST_MEASURED = 3000, 100, 1000


@dataclass
class Steps:
    """StepEnded rows, thinned out as they arrive.

    A reader in another thread has to copy a list before it uses the list.

    Attributes:
        rows: rows of all steps, the older ones thinned out.
        measured: rows with the values of each stage, the older ones thinned out.
    """

    rows: list[Row] = field(default_factory=list)
    measured: list[Row] = field(default_factory=list)

    @property
    def last_position(self) -> tuple[int, int]:
        """Epoch and step of the latest row; zeros before the first."""
        return _position(self.rows[-1]) if self.rows else (0, 0)

    def add(self, row: Row) -> None:
        """Add a row."""
        self.rows.append(row)
        if len(self.rows) > _MOST_STEPS:
            self.rows = _thin_out(self.rows)
        if row.get("stages"):
            self.measured.append(row)
            if len(self.measured) > _MOST_MEASURED:
                self.measured = _thin_out(self.measured)

    def truncate(self, epoch: int, step: int) -> None:
        """Drop the rows after a step."""
        self.rows, self.measured = (
            [row for row in rows if _position(row) <= (epoch, step)]
            for rows in (self.rows, self.measured)
        )


def _position(row: Row) -> tuple[int, int]:
    return row["epoch"], row["step"]


def _thin_out(rows: list[Row]) -> list[Row]:
    """Keep every second one of the older rows."""
    return rows[:-_RECENT_STEPS:2] + rows[-_RECENT_STEPS:]
