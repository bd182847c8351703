"""The ``app`` command: start the dashboard."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from finetune_core.paths import dashboard


def start_app(port: int | None, browser: bool, options: Sequence[str]) -> NoReturn:
    """Replace this process by Streamlit.

    Signals then reach Streamlit, and its exit status is the command's.

    Args:
        port: the port to listen on. None: Streamlit's own choice.
        browser: whether to open a browser.
        options: Streamlit's own options, as typed.

    Raises:
        FinetuneError: if the dashboard is missing.
    """
    chosen = [] if port is None else [f"--server.port={port}"]
    chosen += [] if browser else ["--server.headless=true"]
    script = str(dashboard())
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "streamlit", "run", script, *chosen, *options])
