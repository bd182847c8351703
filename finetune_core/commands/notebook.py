"""Progress bars in a notebook cell, redrawn in place by IPython alone.

rich's own notebook support needs ipywidgets, and shows nothing without it.
"""

from time import monotonic
from typing import Any

from rich.progress import Progress, TaskID

_EVERY = 0.2  # seconds between two drawings


class NotebookProgress(Progress):
    """Progress bars displayed by IPython. The bars disappear at the end."""

    def start(self) -> None:
        """Display the bars in the output of the cell."""
        from IPython.display import display  # always installed in a notebook

        self._drawn = monotonic()
        self._cell = display(self, display_id=True)

    def update(self, task_id: TaskID, **fields: Any) -> None:
        """Update a task, and redraw the bars if they were drawn 0.2 seconds ago or earlier."""
        super().update(task_id, **fields)
        if monotonic() - self._drawn >= _EVERY:
            self.refresh()

    def refresh(self) -> None:
        """Redraw the bars in place."""
        self._drawn = monotonic()
        self._cell.update(self)

    def stop(self) -> None:
        """Remove the bars from the output of the cell."""
        self._cell.update({"text/plain": "", "text/html": ""}, raw=True)
