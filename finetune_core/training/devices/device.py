"""Devices and number formats to compute with, and a description of the machine."""

import os
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TypeVar

import psutil
import torch
from torch import nn

from finetune_core.config import RunConfig
from finetune_core.errors import ConfigError
from finetune_core.formatting import pluralize
from finetune_core.training.events import Numerics
from finetune_core.training.strategies.catalogue import count_epochs

# TF32 keeps 10 bits of each factor in "fp32", on recent NVIDIA GPUs only, and is the default for
# convolutions. cuDNN is set by the older option: torch.export raises where only the newer ones are
# set.
torch.backends.cudnn.allow_tf32 = False
torch.backends.cuda.matmul.fp32_precision = "ieee"
# Timing may choose another algorithm when a run is resumed, and times every new batch size again.
torch.backends.cudnn.benchmark = False

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_WITH_FP16 = ("cuda",)

Module = TypeVar("Module", bound=nn.Module)
# A network, or a part of it: a batch on the device -> the output for it.
Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Device:
    """A device as a run uses it.

    Attributes:
        kind: torch's name: ``cuda``, ``mps`` or ``cpu``.
        label: Name for people.
        precision: ``fp32``, ``bf16`` or ``fp16``.
    """

    kind: str
    label: str
    precision: str

    @property
    def torch_device(self) -> torch.device:
        """This device as torch knows it."""
        return torch.device(self.kind)

    @property
    def is_gpu(self) -> bool:
        """True if the device computes beside the processor."""
        return self.kind != "cpu"

    @property
    def exact(self) -> "Device":
        """This device in fp32."""
        return replace(self, precision="fp32")

    @property
    def layout(self) -> torch.memory_format:
        """Memory layout of images: the fastest one for convolutions.

        On Apple's GPU it is the usual one instead. In the other, BatchNorm has been given wrong
        gradients there (github.com/pytorch/pytorch/issues/175189).
        """
        return torch.contiguous_format if self.kind == "mps" else torch.channels_last

    def move_module(self, module: Module, layout: torch.memory_format | None = None) -> Module:
        """Move a network here, in the layout of its images unless another one is given."""
        return module.to(self.torch_device, memory_format=layout or self.layout)  # type: ignore[call-overload, no-any-return]  # torch does not declare memory_format

    def move_inputs(self, inputs: torch.Tensor) -> torch.Tensor:
        """Move inputs of a network or a part of one here: images or activations."""
        if self.kind == "mps":
            return inputs.to(self.torch_device, memory_format=torch.contiguous_format)
        return inputs.to(self.torch_device)

    def autocast(self) -> AbstractContextManager[object]:
        """Compute in the device's precision within the block."""
        return (
            torch.autocast(self.kind, _DTYPES[self.precision])
            if self.precision in _DTYPES
            else nullcontext()
        )


@dataclass(frozen=True)
class Machine:
    """The machine as the home page shows it. Memory is in bytes."""

    device: Device
    cores: int
    memory: int
    free_memory: int


def choose_device(device: str = "auto", precision: str = "auto") -> Device:
    """Choose CUDA, then Apple's GPU, then the processor, and a precision.

    The precision is bf16 where the hardware computes in it, else fp16 on NVIDIA GPUs with tensor
    cores, else fp32.

    Raises:
        ConfigError: If the requested device is missing, if bf16 would be emulated, or if fp16 is
            requested elsewhere than on NVIDIA GPUs.
    """
    devices = _list_devices()
    if device != "auto" and device not in devices:
        raise ConfigError(
            {"device": f"there is no {device} here; this machine has {', '.join(devices)}"}
        )
    kind = devices[0] if device == "auto" else device
    if precision == "auto":
        precision = (
            "bf16" if _has_native_bf16(kind) else "fp16" if _has_tensor_cores(kind) else "fp32"
        )
    elif precision == "bf16" and not _has_native_bf16(kind):
        raise ConfigError(
            {"precision": f"bf16 would be emulated on {_make_label(kind)}; choose auto or fp32"}
        )
    elif precision == "fp16" and kind not in _WITH_FP16:
        raise ConfigError(
            {
                "precision": f"fp16 is for NVIDIA GPUs, not for {_make_label(kind)}; choose auto "
                "or fp32"
            }
        )
    return Device(kind, _make_label(kind), precision)


def device_for_run(config: RunConfig) -> Device:
    """Return the device that a run computes on.

    A head that is fitted is evaluated on fp32 features, so it is fitted to fp32 features, too.

    Raises:
        ConfigError: As ``choose_device``.
    """
    device = choose_device(config.device, config.precision)
    return device if count_epochs(config) else device.exact


def read_numerics() -> Numerics:
    """Return how this process computes on an NVIDIA GPU.

    A program that uses Thaw may have chosen other settings than Thaw does.
    """
    operations = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]  # torch's stub lacks conv
    return Numerics(
        tf32=any(one.fp32_precision == "tf32" for one in operations),
        cudnn_benchmark=torch.backends.cudnn.benchmark,
    )


def describe_machine() -> Machine:
    """Return what the home page shows about this machine."""
    memory = psutil.virtual_memory()
    return Machine(choose_device(), os.cpu_count() or 1, memory.total, memory.available)


def _list_devices() -> list[str]:
    devices = ["cuda"] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        devices.append("mps")
    return [*devices, "cpu"]


def _has_native_bf16(kind: str) -> bool:
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def _has_tensor_cores(kind: str) -> bool:
    """Return whether fp16 is several times faster than fp32: on NVIDIA GPUs since Volta."""
    return kind == "cuda" and torch.cuda.get_device_capability() >= (7, 0)


def _make_label(kind: str) -> str:
    if kind == "cuda":
        return torch.cuda.get_device_name()
    if kind == "mps":
        return "Apple GPU"
    name = (
        torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine()
    )
    return f"{name}, {pluralize(torch.get_num_threads(), 'thread')}"
