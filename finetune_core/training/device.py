"""Where to compute and in which number format; what the machine is."""

import os
import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TypeVar

import psutil
import torch
from torch import nn

from finetune_core.config import RunConfig
from finetune_core.errors import ConfigError
from finetune_core.formatting import things
from finetune_core.training.events import Numerics
from finetune_core.training.strategies import epochs_of

# TF32 keeps 10 bits of each factor in "fp32", on recent NVIDIA GPUs only, and for convolutions by default. cuDNN has the older
# setting: torch.export raises where only the newer ones are set.
torch.backends.cudnn.allow_tf32 = False
torch.backends.cuda.matmul.fp32_precision = "ieee"
# The algorithm that is fastest when timed may be another one when a run is resumed, and every new batch size is timed again.
torch.backends.cudnn.benchmark = False

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_WITH_FP16 = ("cuda",)

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Device:
    """A device as a run uses it.

    Attributes:
        kind: ``cuda``, ``mps`` or ``cpu``: torch's name.
        label: for people.
        precision: ``fp32``, ``bf16`` or ``fp16``.
    """

    kind: str
    label: str
    precision: str

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.kind)

    @property
    def is_gpu(self) -> bool:
        """Whether it computes beside the processor."""
        return self.kind != "cpu"

    @property
    def exact(self) -> "Device":
        """The same device in fp32."""
        return replace(self, precision="fp32")

    @property
    def layout(self) -> torch.memory_format:
        """The memory layout of images: the fastest one for convolutions, but on Apple's GPU, where in that one BatchNorm has been given
        wrong gradients (github.com/pytorch/pytorch/issues/175189), the usual one."""
        return torch.contiguous_format if self.kind == "mps" else torch.channels_last

    def hold(self, module: Module, layout: torch.memory_format | None = None) -> Module:
        """Move a network here, in the layout of its images, unless another one is asked for."""
        return module.to(self.torch_device, memory_format=layout or self.layout)  # type: ignore[call-overload, no-any-return]  # torch does not declare memory_format

    def take(self, inputs: torch.Tensor) -> torch.Tensor:
        """Move here what goes into a network or a part of one: images or activations."""
        if self.kind == "mps":
            return inputs.to(self.torch_device, memory_format=torch.contiguous_format)
        return inputs.to(self.torch_device)

    def autocast(self) -> AbstractContextManager[object]:
        """Within, a network computes in the device's precision."""
        return (
            torch.autocast(self.kind, _DTYPES[self.precision])
            if self.precision in _DTYPES
            else nullcontext()
        )


@dataclass(frozen=True)
class Machine:
    """The machine as the home page shows it; memory in bytes."""

    device: Device
    cores: int
    memory: int
    free_memory: int


def choose_device(device: str = "auto", precision: str = "auto") -> Device:
    """CUDA, then Apple's GPU, then the processor; bf16 where the hardware computes in it, else fp16 on NVIDIA GPUs with tensor cores.

    Raises:
        ConfigError: when a device is asked for that is not there, bf16 where it would be emulated, or fp16 elsewhere than on NVIDIA
            GPUs.
    """
    present = _present()
    if device != "auto" and device not in present:
        raise ConfigError(
            {"device": f"there is no {device} here; this machine has {', '.join(present)}"}
        )
    kind = present[0] if device == "auto" else device
    if precision == "auto":
        precision = "bf16" if _native_bf16(kind) else "fp16" if _tensor_cores(kind) else "fp32"
    elif precision == "bf16" and not _native_bf16(kind):
        raise ConfigError(
            {"precision": f"bf16 would be emulated on {_label(kind)}; choose auto or fp32"}
        )
    elif precision == "fp16" and kind not in _WITH_FP16:
        raise ConfigError(
            {"precision": f"fp16 is for NVIDIA GPUs, not for {_label(kind)}; choose auto or fp32"}
        )
    return Device(kind, _label(kind), precision)


def device_for_run(config: RunConfig) -> Device:
    """Return the device that a run computes on.

    A head that is fitted is evaluated on fp32 features, so it is fitted to fp32 features, too.

    Raises:
        ConfigError: as ``choose_device``.
    """
    device = choose_device(config.device, config.precision)
    return device if epochs_of(config) else device.exact


def numerics() -> Numerics:
    """How this process computes on an NVIDIA GPU; a program that uses Thaw may have chosen otherwise than Thaw does."""
    operations = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]  # torch's stub lacks conv
    return Numerics(
        tf32=any(one.fp32_precision == "tf32" for one in operations),
        cudnn_benchmark=torch.backends.cudnn.benchmark,
    )


def describe_machine() -> Machine:
    """What the home page says about this machine."""
    memory = psutil.virtual_memory()
    return Machine(choose_device(), os.cpu_count() or 1, memory.total, memory.available)


def _present() -> list[str]:
    found = ["cuda"] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def _native_bf16(kind: str) -> bool:
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def _tensor_cores(kind: str) -> bool:
    """Whether fp16 is several times faster than fp32: on NVIDIA GPUs since Volta."""
    return kind == "cuda" and torch.cuda.get_device_capability() >= (7, 0)


def _label(kind: str) -> str:
    if kind == "cuda":
        return torch.cuda.get_device_name()
    if kind == "mps":
        return "Apple GPU"
    name = (
        torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine()
    )
    return f"{name}, {things(torch.get_num_threads(), 'thread')}"
