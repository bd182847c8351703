"""The app as ``streamlit run app.py`` runs it, in a process that has the libraries already: importing them takes longer than most tests."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def run_app(environment, log, options):
    """Serve until the process is told to end; what it prints goes to ``log``."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)  # where .streamlit is
    with log.open("wb") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    from streamlit.web.cli import main

    main(["run", "app.py", *options], prog_name="streamlit")
