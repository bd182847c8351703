"""The tail's training step against the machine's measured matrix peak in the same precision.

python -m benchmarks.peak
python -m benchmarks.peak --profile     # and where the step's time goes, on a processor
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.step_profile import profiled
from finetune_core.config import make_config
from finetune_core.models.network import build_network
from finetune_core.training.compute import place, train_step
from finetune_core.training.device import Device, choose_device
from finetune_core.training.freezing import apply
from finetune_core.training.optimizers import make_optimizer
from finetune_core.training.stage_plan import cut_index, plan
from finetune_core.training.trunk import split_network

ROUNDS, CLASSES = 9, 10
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """How long the device takes, from when it has nothing else to do until it is done."""
    if device.type == "cuda":
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        began.record()
        run()
        ended.record()
        ended.synchronize()
        return float(began.elapsed_time(ended)) / 1e3
    wait = torch.mps.synchronize if device.type == "mps" else lambda: None
    wait()
    at = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - at


def several(run: Callable[[], object], device: torch.device) -> list[float]:
    """The seconds of ``ROUNDS`` runs after one that warms up."""
    run()
    return [seconds(run, device) for _ in range(ROUNDS)]


def matrix_peak(dtype: torch.dtype, device: torch.device, side: int) -> float:
    """FLOP/s of the product of two square matrices, the best of several."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / min(several(lambda: a @ b, device))


@dataclass(frozen=True)
class Tail:
    """What trains of a network, put together as a run does it.

    Attributes:
        step: one training step on ``inputs``.
        flops: of a step.
        inputs: a batch of what the trunk yields, on the device.
        parameters: numbers that train.
    """

    step: Callable[[], object]
    flops: int
    inputs: torch.Tensor
    parameters: int


def tail_of(
    backbone: str, strategy_name: str, device: Device, batch: int, image_size: int = 224
) -> Tail:
    config = make_config({"data": "none", "backbone": backbone, "strategy": strategy_name})
    network = build_network(backbone, "none", CLASSES, 0)
    strategy = plan(config, network.stages)
    place(network, strategy, device)
    inputs = torch.randn(batch, 3, image_size, image_size)
    inputs = inputs.to(device.torch_device, memory_format=torch.channels_last)
    tail: nn.Module = network.model
    if cut := cut_index(strategy):
        segments = split_network(network)
        with torch.no_grad(), device.autocast():
            inputs = segments.part(None, cut).eval()(inputs)
        tail = segments.part(cut, None)
    apply(strategy, network.stages, network.model, 1)
    optimizer = make_optimizer(config, strategy, network.stages, network.model)
    labels = torch.zeros(batch, dtype=torch.long, device=inputs.device)

    def step() -> object:
        return train_step(tail, inputs, labels, optimizer, device, 0)

    with FlopCounterMode(display=False) as counter:
        step()
    trained = sum(p.numel() for p in network.model.parameters() if p.requires_grad)
    return Tail(step, counter.get_total_flops(), inputs, trained)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=32, help="images")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--side", type=int, default=4096, help="of the matrices")
    parser.add_argument(
        "--profile", action="store_true", help="where the step's time goes; on a processor"
    )
    options = parser.parse_args()
    device = choose_device("cpu") if options.profile else choose_device()
    peak = matrix_peak(DTYPES[device.precision], device.torch_device, options.side)
    print(f"matrix peak in {device.precision}: {peak / 1e9:.0f} GFLOP/s")
    for name in ("last_block", "last_two_blocks"):
        tail = tail_of("resnet18", name, device, options.batch, options.image_size)
        achieved = tail.flops / statistics.median(several(tail.step, device.torch_device))
        print(
            f"{name}, ResNet-18 at {options.image_size}: {achieved / 1e9:.0f} GFLOP/s, {achieved / peak:.0%} of it"
        )
        if options.profile:
            print(*profiled(tail.step, ROUNDS, peak), sep="\n")


if __name__ == "__main__":
    main()
