"""Images that were readable when a run began and no longer are.

They are named and counted. Too many of them end the run.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from finetune_core.errors import TrainingError
from finetune_core.formatting import format_number, format_percent, pluralize
from finetune_core.training.events import Event, ImagesLost
from finetune_core.training.job import Job

_EXAMPLES = 20


@dataclass(frozen=True)
class LostImages:
    """Lost images that a run has reported so far: reasons by row."""

    job: Job
    known: dict[int, str] = field(default_factory=dict)

    def report(self, lost: Mapping[int, str]) -> Iterator[Event]:
        """Yield an event if some of the images are new.

        Raises:
            TrainingError: If there are too many to go on.
        """
        if lost.keys() <= self.known.keys():
            return
        self.known.update(lost)
        examples = list(self.known.values())[:_EXAMPLES]
        yield ImagesLost(len(self.known), examples)
        total, limit = sum(len(rows) for rows in self.job.rows.values()), self.job.config.skip_limit
        if len(self.known) > limit * total:
            raise TrainingError(
                f"{pluralize(len(self.known), 'image')} of {format_number(total)} can no longer "
                f"be read, more than {format_percent(limit)}: {examples[0].rstrip('.')}. Put them "
                "back and resume the run, or start a new one without them."
            )
