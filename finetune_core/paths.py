"""Where Thaw keeps what it writes: its checkout, or the folder that THAW_HOME names."""

import os
from pathlib import Path

from finetune_core.errors import FinetuneError

APP = Path(__file__).resolve().parent.parent / "app.py"  # the dashboard: in a checkout only, never in an installed copy


def home() -> Path:
    """The folder below which Thaw writes: ``THAW_HOME``, else the checkout, else ``.thaw`` in the person's own folder.

    Raises:
        FinetuneError: when THAW_HOME names what cannot be a folder.
    """
    if named := os.environ.get("THAW_HOME"):
        try:
            folder = Path(named).expanduser().resolve()
            folder.exists()
        except (OSError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "there is no such person here"
            raise FinetuneError(f"THAW_HOME cannot be {named}: {reason}. Set it to a folder that can be written.") from None
        return folder
    return APP.parent if APP.is_file() else Path.home() / ".thaw"


def runs_dir() -> Path:
    """Where runs go unless another folder is named."""
    return home() / "runs"


def data_dir() -> Path:
    """Where the bundled samples are written, and where the app looks for data sets first."""
    return home() / "data"
