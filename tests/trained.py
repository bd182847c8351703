"""Two finished runs of the packaged network, trained once for all tests of a session."""

from pathlib import Path
from typing import NamedTuple

from tests.factories import NASTY, copy_run, shared_images, tiny_config, trained_run

QUICK = {
    "image_size": 32,
    "epochs": 2,
    "batch_size": 16,
    "learning_rate": 1e-3,
    "precision": "fp32",
}


class TrainedRuns(NamedTuple):
    """The images ``red``, ``blue`` and ``NASTY``, 40 of each, and two run directories on them.

    Copy a run before you change it.
    """

    data: Path
    last_block: Path
    feature_extraction: Path

    def copied(self, runs_dir: Path, *strategies: str) -> list[Path]:
        """Copy the runs (both, unless named) below ``runs_dir``."""
        found = [getattr(self, name) for name in strategies or self._fields[1:]]
        return [copy_run(run_dir, runs_dir) for run_dir in found]


def train_once() -> TrainedRuns:
    data = shared_images(**{"red": 40, "blue": 40, NASTY: 40})
    runs = (
        trained_run(tiny_config(data, backbone="efficientnet_lite0", strategy=strategy))
        for strategy in TrainedRuns._fields[1:]
    )
    return TrainedRuns(data, *(run.run_dir for run in runs))
