"""The steps of a run, as far as a curve needs them."""

from dataclasses import dataclass

from finetune_core.training.events import Row

_MOST_STEPS, _RECENT_STEPS, _MOST_MEASURED = 3000, 100, 1000


@dataclass(frozen=True)
class Steps:
    """StepEnded rows; never changed, because another session may look at them while the run is read on.

    Attributes:
        rows: of all steps, the older ones thinned out.
        measured: those with the values of each stage, the older ones thinned out.
    """

    rows: tuple[Row, ...] = ()
    measured: tuple[Row, ...] = ()

    @property
    def last(self) -> tuple[int, int]:
        """(epoch, step) of the latest; zeros before the first."""
        return _position(self.rows[-1]) if self.rows else (0, 0)

    def then(self, row: Row) -> "Steps":
        """With one more."""
        measured = _thinned((*self.measured, row), _MOST_MEASURED) if row.get("stages") else self.measured
        return Steps(_thinned((*self.rows, row), _MOST_STEPS), measured)

    def until(self, epoch: int, step: int) -> "Steps":
        """Without those after a step."""
        return Steps(*(tuple(row for row in rows if _position(row) <= (epoch, step)) for rows in (self.rows, self.measured)))


def _position(row: Row) -> tuple[int, int]:
    return row["epoch"], row["step"]


def _thinned(rows: tuple[Row, ...], most: int) -> tuple[Row, ...]:
    """Every second one of the older rows, once there are too many."""
    return rows if len(rows) <= most else rows[:-_RECENT_STEPS:2] + rows[-_RECENT_STEPS:]
