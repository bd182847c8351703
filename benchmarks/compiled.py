"""The frozen stages' forward pass, eager and compiled, alternating; how far each is from fp32; and what compiling took.

python -m benchmarks.compiled
python -m benchmarks.compiled --backbones resnet18 --precision fp32
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from finetune_core.models.catalogue import backbone_info
from finetune_core.models.network import build_network
from finetune_core.training.compiler_process import CompilerProcess
from finetune_core.training.device import Device, choose_device
from finetune_core.training.packages import Compiled, load_package
from finetune_core.training.trunk import split_network

BATCH, SIZE, ROUNDS = 32, 224, 15


def compiled(part: torch.nn.Module, images: torch.Tensor, device: Device) -> tuple[Compiled, float]:
    """The compiled pass, and the seconds until it was there."""
    process = CompilerProcess(part, images, device)
    try:
        while (ended := process.ended()) is None:
            time.sleep(0.05)
        if isinstance(ended, str):
            raise SystemExit(f"not compiled: {ended}")
        return load_package(ended), process.elapsed
    finally:
        process.close()


def seconds(run: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> float:
    began = time.perf_counter()
    run(images)
    return time.perf_counter() - began


def measure(backbone: str, device: Device) -> str:
    """One line."""
    network = build_network(
        backbone, "pretrained" if backbone_info(backbone).ready else "none", 10, 0
    )
    device.hold(network.model)
    part = split_network(network).part(None, len(network.stages) - 1).eval()
    coarse = torch.randn(BATCH, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic")
    images = images.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def eager(images: torch.Tensor) -> torch.Tensor:
        with device.autocast():
            output: torch.Tensor = part(images)
        return output

    fast, took = compiled(part, images, device)
    with torch.no_grad():
        exact = part(images)
    away = [((run(images).float() - exact).norm() / exact.norm()).item() for run in (eager, fast)]
    pairs = [(seconds(eager, images), seconds(fast, images)) for _ in range(ROUNDS)]
    usual, found = (BATCH / statistics.median(pair[side] for pair in pairs) for side in (0, 1))
    ratio = statistics.median(before / after for before, after in pairs)
    return (
        f"{backbone}, {device.precision}: eager {usual:.0f} images/s, compiled {found:.0f}, {ratio:.2f} times; "
        f"from fp32 {away[0]:.2g} and {away[1]:.2g}; compiling took {took:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbones", default="efficientnet_lite0,resnet18")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    options = parser.parse_args()
    device = choose_device("cpu", options.precision)
    for backbone in options.backbones.split(","):
        print(measure(backbone, device), flush=True)


if __name__ == "__main__":
    main()
