"""Programs in processes that have imported the large libraries already."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run_module(processes, module, *arguments, folder):
    """Run ``python -m module arguments`` in the checkout; keep what it prints in ``folder``.

    Args:
        processes: the fixture of that name.

    Returns:
        A ``subprocess.CompletedProcess`` with ``stdout`` and ``stderr`` as text.
    """
    output, errors = folder / "stdout", folder / "stderr"
    process = processes.Process(
        target=_as_main, args=(module, arguments, os.environ.copy(), output, errors)
    )
    process.start()
    process.join(300)
    assert process.exitcode is not None
    return subprocess.CompletedProcess(
        (module, *arguments), process.exitcode, output.read_text(), errors.read_text()
    )


def run_app(environment, log, options):
    """Run ``streamlit run app.py`` until the process is ended, and print into ``log``."""
    _take_over(environment, log, log)
    from streamlit.web.cli import main

    main(["run", "app.py", *options], prog_name="streamlit")


def _take_over(environment, output, errors):
    """Become a program that is started in the checkout and prints into these files."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.path[:] = [str(ROOT), *(path for path in sys.path if path and Path(path).resolve() != ROOT)]
    for stream, file in ((sys.stdout, output), (sys.stderr, errors)):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)


def _as_main(module, arguments, environment, output, errors):
    _take_over(environment, output, errors)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
