"""What the ``app`` command does: starts the dashboard, which lies beside ``finetune_core`` in the checkout."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from finetune_core.errors import FinetuneError
from finetune_core.paths import APP


def start_app(port: int | None, options: Sequence[str]) -> NoReturn:
    """Become Streamlit, so that signals reach it and its exit status is the command's.

    Args:
        options: Streamlit's own, as typed.

    Raises:
        FinetuneError: when the dashboard is not there.
    """
    if not APP.is_file():
        raise FinetuneError(
            f"There is no dashboard at {APP}: it is part of the checkout, not of the installed package. Install with "
            "`pip install -e .` in a checkout, and keep that where it is."
        )
    chosen = [] if port is None else [f"--server.port={port}"]
    sys.stdout.flush()
    os.execv(
        sys.executable, [sys.executable, "-m", "streamlit", "run", str(APP), *chosen, *options]
    )
