"""Images that could be read when a run began, but no longer: named, counted, and too many end the run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from finetune_core.errors import TrainingError
from finetune_core.formatting import number, percent, things
from finetune_core.training.events import Event, ImagesLost
from finetune_core.training.job import Job

_EXAMPLES = 20


@dataclass(frozen=True)
class LostImages:
    """What a run has reported of lost images so far: row -> why."""

    job: Job
    known: dict[int, str] = field(default_factory=dict)

    def report(self, lost: Mapping[int, str]) -> Iterator[Event]:
        """An event where some of them are new.

        Raises:
            TrainingError: when they are too many to go on.
        """
        if lost.keys() <= self.known.keys():
            return
        self.known.update(lost)
        examples = list(self.known.values())[:_EXAMPLES]
        yield ImagesLost(len(self.known), examples)
        total, limit = sum(len(rows) for rows in self.job.rows.values()), self.job.config.skip_limit
        if len(self.known) > limit * total:
            raise TrainingError(
                f"{things(len(self.known), 'image')} of {number(total)} can no longer be read, more than {percent(limit)}: "
                f"{examples[0].rstrip('.')}. Put them back and resume the run, or start a new one without them."
            )
