"""Two finished runs, trained once for all tests of a session."""

import shutil
from pathlib import Path
from typing import NamedTuple

from finetune_core.config import make_config
from finetune_core.runs.record import create_run, execute

NASTY = '<b>x$1$"[a](b)'  # a class whose name means something to HTML, Markdown, TeX and CSV
QUICK = {
    "image_size": 32,
    "epochs": 2,
    "batch_size": 16,
    "learning_rate": 1e-3,
    "precision": "fp32",
}


class Trained(NamedTuple):
    """The images ``red``, ``blue`` and ``NASTY``, 40 of each, and the folders of two runs on them. Copy a run before you change it."""

    data: Path
    last_block: Path
    feature_extraction: Path

    def copied(self, runs_dir: Path, *strategies: str) -> list[Path]:
        """Copies of the runs (of both, unless named) below ``runs_dir``."""
        found = [getattr(self, name) for name in strategies or self._fields[1:]]
        return [Path(shutil.copytree(run_dir, runs_dir / run_dir.name)) for run_dir in found]


def train_once(base: Path, write_images) -> Trained:
    """Trained below ``base``, unless they were before."""
    if not (base / "complete").exists():
        shutil.rmtree(base, ignore_errors=True)
        data = write_images(base / "images", {"red": 40, "blue": 40, NASTY: 40})
        for strategy in Trained._fields[1:]:
            reservation = create_run(
                make_config(QUICK | {"data": str(data), "strategy": strategy}), base / strategy
            )
            list(execute(reservation))
        (base / "complete").touch()
    return Trained(
        base / "images", *(next((base / name).iterdir()) for name in Trained._fields[1:])
    )
