"""The ``app`` command: starts the dashboard."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from finetune_core.paths import dashboard


def start_app(port: int | None, browser: bool, options: Sequence[str]) -> NoReturn:
    """Become Streamlit, so that signals reach it and its exit status is the command's.

    Args:
        port: the port to listen on; None for Streamlit's own choice.
        browser: whether a browser is opened.
        options: Streamlit's own options, as typed.

    Raises:
        FinetuneError: when the dashboard is not there.
    """
    chosen = [] if port is None else [f"--server.port={port}"]
    chosen += [] if browser else ["--server.headless=true"]
    script = str(dashboard())
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "streamlit", "run", script, *chosen, *options])
