"""Programs in processes that have the large libraries already: importing them takes longer than much of what tests do with them."""

import multiprocessing
import os
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def forkserver():
    """Return the context of processes that start with the large libraries imported.

    None of torch's threads runs in them yet. Without ``fork`` every process imports them anew.
    """
    if os.name != "posix":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["finetune_core.runs.record", "timm", "streamlit.web.cli", "plotly.graph_objects", "altair"]
    )
    return context


def run_module(processes, module, *arguments, folder):
    """``python -m module arguments`` in the checkout, to its end; what it prints is kept in ``folder``.

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
    """``streamlit run app.py`` until the process is told to end; what it prints goes to ``log``."""
    take_over(environment, log, log)
    from streamlit.web.cli import main

    main(["run", "app.py", *options], prog_name="streamlit")


def take_over(environment, output, errors):
    """Be a program that was started in the checkout, with this environment, and prints into these files."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.path[:] = [str(ROOT), *(path for path in sys.path if path and Path(path).resolve() != ROOT)]
    for stream, file in ((sys.stdout, output), (sys.stderr, errors)):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)


def _as_main(module, arguments, environment, output, errors):
    take_over(environment, output, errors)
    run_as_main(module, arguments)


def run_as_main(module, arguments):
    """Run a module as ``python -m`` does, in a process that runs nothing else."""
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
