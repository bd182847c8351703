"""The process that compiles, as seen by the process that asked for it.

``compile_child.py`` is what runs there.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from finetune_core.files import temporary_folder
from finetune_core.training.devices.device import Device

KILLED = "the compiler was killed, perhaps because memory ran out"

_PROJECT = Path(__file__).resolve().parents[3]


class CompilerProcess:
    """A process that compiles a part of a network for one shape of input.

    It runs at the lowest priority, after everything else that computes here.

    Args:
        module: Part of a network in eval mode.
        example: A batch.
    """

    def __init__(self, module: nn.Module, example: torch.Tensor, device: Device) -> None:
        self._start_time, self._open = time.monotonic(), ExitStack()
        with ExitStack() as stack:
            # Files in this folder are unpickled and run, so no other user may reach it.
            self._folder = stack.enter_context(temporary_folder("compiling"))
            request = {
                "part": module,
                "example": example,
                "device": device,
                "threads": torch.get_num_threads(),
            }
            torch.save(request, self._folder / "request.pt")
            problems = stack.enter_context((self._folder / "problems").open("wb"))
            # The compiler's cache and temporary files belong in this folder, too: other users can
            # write to its usual places.
            folders = dict.fromkeys(("TORCHINDUCTOR_CACHE_DIR", "TMPDIR"), str(self._folder))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "finetune_core.training.compile.child", str(self._folder)],
                cwd=_PROJECT,
                env=os.environ | folders | {"TORCHINDUCTOR_COMPILE_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=problems,
                start_new_session=True,
            )
            stack.callback(self._end)
            self._open = stack.pop_all()

    @property
    def elapsed(self) -> float:
        """Seconds since the process was started."""
        return time.monotonic() - self._start_time

    def poll(self) -> bytes | str | None:
        """Return the package, or the reason why there is none, or None while the process runs."""
        if (status := self._process.poll()) is None:
            return None
        if status == 0:
            return (self._folder / "package.pt2").read_bytes()
        if status < 0:
            return KILLED
        lines = (self._folder / "problems").read_text(errors="replace").split("\n")
        return next(
            (line.strip()[:200] for line in reversed(lines) if line.strip()),
            f"it ended with status {status}",
        )

    def close(self) -> None:
        """End the process and everything it has started."""
        self._open.close()

    def _end(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()
