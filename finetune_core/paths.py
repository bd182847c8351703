"""Where Thaw keeps what it writes: the project's own folder, or the folder that THAW_HOME names."""

import os
from pathlib import Path


def home() -> Path:
    """The folder below which Thaw writes: ``THAW_HOME``, else the folder that holds ``finetune_core``."""
    named = os.environ.get("THAW_HOME")
    return Path(named).expanduser().resolve() if named else Path(__file__).resolve().parent.parent


def runs_dir() -> Path:
    """Where runs go unless another folder is named."""
    return home() / "runs"


def data_dir() -> Path:
    """Where the bundled samples are written, and where the app looks for data sets first."""
    return home() / "data"
