"""Programs in forked processes, which need not import the large libraries again."""

import math
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.deadline import SECONDS

ROOT = Path(__file__).resolve().parent.parent


def forkserver():
    """Return the context of processes that start with the large libraries imported.

    None of torch's threads runs in them yet. Without ``fork`` every process imports the libraries
    itself.
    """
    if os.name != "posix":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["finetune_core.runs.record", "timm", "streamlit.web.cli", "plotly.graph_objects", "altair"]
    )
    return context


def run_module(processes, module, *arguments, folder):
    """Run ``python -m module arguments`` in the checkout to its end, and keep its output.

    Args:
        processes: the fixture of that name.
        folder: folder of ``stdout`` and ``stderr``.

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
    """Run ``streamlit run app.py`` until the process is told to end; output goes to ``log``."""
    take_over(environment, log, log)
    from streamlit.web.cli import main

    main(["run", "app.py", *options], prog_name="streamlit")


def take_over(environment, output, errors):
    """Act as a program started in the checkout with this environment and these output files."""
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


class Command:
    """``thaw ARGUMENTS`` in a forked process that leads a process group and prints into files.

    Args:
        folder: folder of the files.
        environment: variables beside those of this process.
        burst: seconds within which several Ctrl-C count as one.
    """

    def __init__(self, folder, *arguments, environment=(), burst=math.inf):
        self._files = folder / "stdout", folder / "stderr"
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | dict(environment)
        self._process = forkserver().Process(
            target=_be_command, args=(environment, *self._files, [*map(str, arguments)], burst)
        )
        self._process.start()
        self.pid = self._process.pid

    def has_ended(self):
        return not self._process.is_alive()

    def interrupt(self):
        """Send the signal of Ctrl-C, and return whether the command has ended."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGINT)
        return self.has_ended()

    def end(self):
        """Return (status, stdout, stderr)."""
        self._process.join(SECONDS)
        if self._process.is_alive():
            os.killpg(self.pid, signal.SIGKILL)
            pytest.fail("it does not end")
        return self._process.exitcode, *(file.read_text() for file in self._files)


def _be_command(environment, output, errors, arguments, burst):
    os.setsid()
    take_over(environment, output, errors)
    import torch

    from finetune_core.commands import terminal

    torch.set_num_threads(1)
    terminal._BURST = burst
    run_as_main("finetune_core", arguments)
