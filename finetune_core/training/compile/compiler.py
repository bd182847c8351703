"""Forward passes without gradients, compiled where that pays.

A pass is eager until its package is ready, and compiled from then on. Training steps gain nothing
from compiling: forward and backward are both bound by the same convolutions. Measured on processors
only: ``benchmarks/peak.py --without compiled``.
"""

import hashlib
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from types import TracebackType
from typing import Self

import torch
from torch import fx, nn

from finetune_core.errors import is_out_of_memory
from finetune_core.formatting import pluralize
from finetune_core.training.compile.packages import (
    load_package,
    read_package,
    write_package,
)
from finetune_core.training.compile.process import KILLED, CompilerProcess
from finetune_core.training.devices.device import Device, Forward
from finetune_core.training.devices.speed_book import Compilation, SpeedBook
from finetune_core.version import __version__

# Libraries whose code a package is compiled from, beside Thaw's own.
_LIBRARIES = ("torch", "torchvision", "timm")
# Batches that are timed before the decision. The very first one also allocates memory.
_TIMED = 3


@dataclass(frozen=True)
class Part:
    """A part of a network whose forward pass is requested.

    Attributes:
        module: A module in eval mode, from one tensor to one. It must not change meanwhile.
        label: Which part of which backbone: ``resnet18 0-4``.
        weights: Function that returns a hash of its weights. Only called where the hash is needed.
    """

    module: nn.Module
    label: str
    weights: Callable[[], str]


def is_worthwhile(images: int, seconds_per_image: float, expected: Compilation) -> bool:
    """Return whether compiling saves more time than it takes.

    Args:
        images: Number of images that are left.
        seconds_per_image: Time of the eager pass.
        expected: Cost and gain of compiling on this machine.
    """
    return images * seconds_per_image * expected.saved > expected.seconds


def find_compiler() -> str | None:
    """Return the C++ compiler that would be used, or None where there is none."""
    return shutil.which(os.environ.get("CXX") or "g++")


class Compiler:
    """The forward passes of one piece of work, for one thread.

    It is a context manager: when the block ends, nothing is compiling any more.

    Args:
        images: Number of images that will go through the passes.
        batch: Number of images at a time.
        why_not: Why nothing is to be compiled, as text. Empty where compiling is allowed.
    """

    def __init__(self, device: Device, images: int, batch: int, why_not: str = "") -> None:
        self._device, self._num_left, self._batch = device, images, batch
        if device.kind != "cpu" or not sys.platform.startswith("linux"):
            why_not = why_not or "measured on processors under Linux only"
        self._why_not = why_not
        self._passes: dict[str, _Pass] = {}

    def forward(self, part: Part) -> Forward:
        """Return the part's forward pass. The same part gets the same pass.

        Call it without gradients, in the device's precision.
        """

        def run(inputs: torch.Tensor) -> torch.Tensor:
            output = one(inputs, self._num_left)
            self._num_left -= len(inputs)
            return output

        one = self._passes.setdefault(
            part.label, _Pass(part, self._device, self._batch, self._why_not)
        )
        return run

    @property
    def report(self) -> str:
        """Outcome for the pass that most images went through, as text. Empty where none did."""
        most_used = max(self._passes.values(), key=lambda one: one.done, default=None)
        return most_used.report if most_used and most_used.done else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for one in self._passes.values():
            one.close()


class _Pass:
    """One part's forward pass.

    Whether to compile is decided once, after a few batches that were timed.

    Attributes:
        done: Number of images so far.
    """

    def __init__(self, part: Part, device: Device, batch: int, why_not: str) -> None:
        self._part, self._device, self._batch, self._book = part, device, batch, SpeedBook()
        self._reason, self.done, self._compiled_after = why_not, 0, 0
        # The shape, strides and type to compile for.
        self._example: torch.Tensor | None = None
        self._expected: Compilation | None = None
        self._child: CompilerProcess | None = None
        self._compiled: Forward | None = None
        # Per image, of the pass in use.
        self._seconds: list[float] = []

    @property
    def report(self) -> str:
        if self._compiled:
            return (
                f"compiled after {pluralize(self._compiled_after, 'image')}"
                if self._compiled_after
                else "compiled before"
            )
        return (
            f"not compiled: {self._reason or 'not worth it for ' + pluralize(self.done, 'image')}"
        )

    def __call__(self, inputs: torch.Tensor, num_left: int) -> torch.Tensor:
        is_full = len(inputs) == self._batch
        if self._child:
            self._take_package()
        elif is_full and self._example is None:
            self._prepare(inputs)
        elif (
            is_full
            and not self._reason
            and not self._compiled
            and self._expected is None
            and len(self._seconds) > _TIMED
        ):
            self._decide(inputs, num_left)
        start_time = time.perf_counter()
        output = self._run(inputs)
        if is_full:
            self._seconds.append((time.perf_counter() - start_time) / len(inputs))
        self.done += len(inputs)
        return output

    def close(self) -> None:
        """End a running compilation and store what was measured."""
        if self._child and self._expected:
            elapsed, self._reason = self._child.elapsed, "it was not ready in time"
            self._child.close()
            if elapsed > self._expected.seconds:
                self._record(replace(self._expected, seconds=elapsed))
        elif self._compiled and self._expected and len(self._seconds) > _TIMED:
            saved = 1 - statistics.median(self._seconds[1:]) / self._eager
            self._record(replace(self._expected, saved=saved))
        self._child = self._expected = None

    def _prepare(self, inputs: torch.Tensor) -> None:
        self._example = torch.empty_strided(
            inputs.shape, inputs.stride(), dtype=inputs.dtype, device="meta"
        )
        if self._device.kind != "cpu" or self._reason:
            return
        if (
            self._book.get_compilation(self._measurement_key).saved > 0
            and (package := read_package(self._package_name)) is not None
        ):
            self._load(package)
        elif find_compiler() is None:
            self._reason = "there is no C++ compiler"

    def _decide(self, inputs: torch.Tensor, num_left: int) -> None:
        self._eager = statistics.median(self._seconds[1:])
        self._expected = self._book.get_compilation(self._measurement_key)
        if not is_worthwhile(num_left, self._eager, self._expected):
            return
        try:
            self._child = CompilerProcess(self._part.module, inputs, self._device)
        except Exception as error:
            # Pickling a module can raise nearly anything. The eager pass goes on.
            self._reason = f"it cannot be handed to another process ({type(error).__name__})"

    def _take_package(self) -> None:
        """Take the package, once it is ready."""
        if not self._child or not self._expected or (ended := self._child.poll()) is None:
            return
        elapsed = self._child.elapsed
        self._child.close()
        self._child = None
        if isinstance(ended, str):
            self._reason = ended
            if ended != KILLED:
                self._record(Compilation(elapsed, 0.0))
            return
        self._expected = replace(self._expected, seconds=elapsed)
        self._record(self._expected)
        write_package(self._package_name, ended)
        self._load(ended)

    def _load(self, content: bytes) -> None:
        try:
            self._compiled = load_package(content)
        except (RuntimeError, OSError) as error:
            self._reason = f"the package cannot be loaded ({type(error).__name__})"
        self._compiled_after, self._seconds = self.done, []

    def _run(self, inputs: torch.Tensor) -> torch.Tensor:
        if (
            self._compiled
            and self._example is not None
            and (batch := match_batch(inputs, self._example)) is not None
        ):
            try:
                return self._compiled(batch)[: len(inputs)]
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                self._compiled, self._reason = None, "the compiled pass failed"
        output: torch.Tensor = self._part.module(inputs)
        return output

    def _record(self, measured: Compilation) -> None:
        self._book.learn_compilation(self._measurement_key, measured)

    @property
    def _measurement_key(self) -> str:
        """Everything that the time and the gain of compiling depend on."""
        shape = None if self._example is None else tuple(self._example.shape)
        device = self._device
        return " | ".join(
            map(str, (device.label, device.precision, self._part.label, shape, torch.__version__))
        )

    @property
    def _package_name(self) -> str:
        """Name of the package, made of everything that it depends on."""
        example, device = self._example, self._device
        shape = None if example is None else (tuple(example.shape), example.stride(), example.dtype)
        processor = sorted(torch.cpu.get_capabilities().items())
        code = [one.code for one in self._part.module.modules() if isinstance(one, fx.GraphModule)]
        parts = (
            self._part.label,
            self._part.weights(),
            code,
            shape,
            device.kind,
            device.precision,
            processor,
        )
        libraries = [__version__, *map(version, _LIBRARIES)]
        digest = hashlib.sha256(
            repr((*parts, torch.get_num_threads(), libraries)).encode()
        ).hexdigest()[:16]
        return f"compiled-{digest}"


def match_batch(inputs: torch.Tensor, example: torch.Tensor) -> torch.Tensor | None:
    """Return a batch as the compiled pass takes it, or None where it does not fit.

    A smaller batch is filled up with its last image. It does not fit if less than half of the batch
    would be used: fewer images may be all that memory holds.
    """
    size = len(example)
    if (
        inputs.shape[1:] != example.shape[1:]
        or inputs.dtype != example.dtype
        or not size < 2 * len(inputs) <= 2 * size
    ):
        return None
    if inputs.shape == example.shape and inputs.stride() == example.stride():
        return inputs
    padded = torch.empty_strided(example.shape, example.stride(), dtype=example.dtype)
    padded[: len(inputs)] = inputs
    padded[len(inputs) :] = inputs[-1]
    return padded
