"""Share of the machine's matrix peak that a training step reaches, and gains of optimisations.

    python -m benchmarks.peak
    python -m benchmarks.peak --without products depthwise compiled allocator

The peak is measured in the precision of the step. ``--without`` alternates between rounds with and
without each optimisation for processors, and compares the ratios of the rounds.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from finetune_core.config import make_config
from finetune_core.models.catalogue import backbone_info
from finetune_core.models.network import build_network
from finetune_core.training.compile.packages import load_package
from finetune_core.training.compile.process import CompilerProcess
from finetune_core.training.data_pipeline.trunk import split_network
from finetune_core.training.devices.device import Device, choose_device
from finetune_core.training.step import compute
from finetune_core.training.step.compute import place_network, train_step
from finetune_core.training.step.optimizers import make_optimizer
from finetune_core.training.strategies.freezing import apply_strategy
from finetune_core.training.strategies.stage_plan import cut_index, plan_strategy

ROUNDS, CLASSES = 9, 10
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CPU = torch.device("cpu")

# optimisation of a step -> function in training/step/compute.py, backbone, strategy, image size
IN_STEPS = {
    "products": ("use_products", "resnet18", "last_block", 224),
    "depthwise": ("keep_depthwise_exact", "efficientnet_lite0", "full", 96),
}
COMPILED = ("efficientnet_lite0", "resnet18")

# Prints the seconds of a ResNet-18 step in a worker thread. finetune_core tunes the allocator.
ALLOCATOR = """
import sys, threading, time
if sys.argv[1] == "tuned":
    import finetune_core
import torch, torchvision

def work():
    model = torchvision.models.resnet18().to(memory_format=torch.channels_last)
    images = torch.randn(int(sys.argv[2]), 3, 224, 224).to(memory_format=torch.channels_last)
    model(images).sum().backward()
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < 3:
        model(images).sum().backward()
        steps += 1
    print((time.perf_counter() - began) / steps)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def time_run(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds until ``run`` is done on an otherwise idle device."""
    if device.type == "cuda":
        start, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        run()
        ended.record()
        ended.synchronize()
        return float(start.elapsed_time(ended)) / 1e3
    wait = torch.mps.synchronize if device.type == "mps" else lambda: None
    wait()
    start_time = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start_time


def time_runs(run: Callable[[], object], device: torch.device) -> list[float]:
    """Return the seconds of ``ROUNDS`` runs after one warm-up run."""
    run()
    return [time_run(run, device) for _ in range(ROUNDS)]


def measure_matrix_peak(dtype: torch.dtype, device: torch.device, side: int) -> float:
    """Return the best FLOP/s of several products of two square matrices."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / min(time_runs(lambda: a @ b, device))


@dataclass(frozen=True)
class Tail:
    """The trained part of a network, built as in a run.

    Attributes:
        step: function that takes one training step on ``inputs``.
        flops: floating-point operations of a step.
        inputs: a batch of the trunk's outputs, on the device.
        parameters: number of trained parameters.
    """

    step: Callable[[], object]
    flops: int
    inputs: torch.Tensor
    parameters: int


def build_tail(
    backbone: str, strategy_name: str, device: Device, batch: int, image_size: int = 224
) -> Tail:
    """Build the tail of a network with random weights, for one strategy."""
    config = make_config({"data": "none", "backbone": backbone, "strategy": strategy_name})
    network = build_network(backbone, "none", CLASSES, 0)
    strategy = plan_strategy(config, network.stages)
    place_network(network, strategy, device)
    inputs = torch.randn(batch, 3, image_size, image_size)
    inputs = inputs.to(device.torch_device, memory_format=torch.channels_last)
    tail: nn.Module = network.model
    if cut := cut_index(strategy):
        segments = split_network(network)
        with torch.no_grad(), device.autocast():
            inputs = segments.part(None, cut).eval()(inputs)
        tail = segments.part(cut, None)
    apply_strategy(strategy, network.stages, network.model, 1)
    optimizer = make_optimizer(config, strategy, network.stages, network.model)
    labels = torch.zeros(batch, dtype=torch.long, device=inputs.device)

    def step() -> object:
        return train_step(tail, inputs, labels, optimizer, device, 0)

    with FlopCounterMode(display=False) as counter:
        step()
    num_trained = sum(p.numel() for p in network.model.parameters() if p.requires_grad)
    return Tail(step, counter.get_total_flops(), inputs, num_trained)


def compare_step(name: str, batch: int) -> Iterator[str]:
    """Compare a bf16 training step with and without an optimisation of ``IN_STEPS``."""
    function, backbone, strategy, size = IN_STEPS[name]
    device = choose_device("cpu", "bf16")
    with patch.object(compute, function):
        plain = build_tail(backbone, strategy, device, batch, size).step
    optimised = build_tail(backbone, strategy, device, batch, size).step
    plain(), optimised()
    ratio = describe_speedup(partial(time_run, plain, CPU), partial(time_run, optimised, CPU))
    yield f"{name}: {backbone}, {strategy}, {size} pixels: {ratio}"


def compare_compiled(batch: int) -> Iterator[str]:
    """Compare the compiled pass through the frozen stages with the eager one."""
    device = choose_device("cpu")
    for backbone in COMPILED:
        ready = backbone_info(backbone).is_ready
        network = build_network(backbone, "pretrained" if ready else "none", CLASSES, 0)
        device.move_module(network.model)
        part = split_network(network).part(None, len(network.stages) - 1).eval()
        images = torch.randn(batch, 3, 224, 224).contiguous(memory_format=torch.channels_last)
        process = CompilerProcess(part, images, device)
        try:
            while (package := process.poll()) is None:
                time.sleep(0.05)
            if isinstance(package, str):
                raise SystemExit(f"{backbone} was not compiled: {package}")
            eager, compiled = partial(part, images), partial(load_package(package), images)
        finally:
            process.close()
        with torch.no_grad(), device.autocast():
            eager(), compiled()
            ratio = describe_speedup(
                partial(time_run, eager, CPU), partial(time_run, compiled, CPU)
            )
        yield f"compiled: {backbone}, {device.precision}: {ratio}; took {process.elapsed:.0f} s"


def compare_allocator(batch: int) -> Iterator[str]:
    """Compare fp32 steps of ResNet-18 with and without ``finetune_core/memory.py``."""

    def time_step(side: str) -> float:
        command = [sys.executable, "-c", ALLOCATOR, side, str(batch)]
        root = Path(__file__).resolve().parent.parent
        return float(subprocess.run(command, cwd=root, stdout=subprocess.PIPE, check=True).stdout)

    ratio = describe_speedup(partial(time_step, "default"), partial(time_step, "tuned"))
    yield f"allocator: {ratio}"


def describe_speedup(without: Callable[[], float], used: Callable[[], float]) -> str:
    """Measure two functions in turn, and describe the median of the ratios."""
    turns = [(without(), used()) for _ in range(ROUNDS)]
    slow, fast = (statistics.median(turn[side] for turn in turns) * 1e3 for side in (0, 1))
    ratios = sorted(first / second for first, second in turns)
    return (
        f"{slow:.1f} ms without, {fast:.1f} ms with: {statistics.median(ratios):.2f} times as "
        f"fast ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


COMPARISONS: dict[str, Callable[[int], Iterator[str]]] = {
    **{name: partial(compare_step, name) for name in IN_STEPS},
    "compiled": compare_compiled,
    "allocator": compare_allocator,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=32, help="images")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--side", type=int, default=4096, help="of the matrices")
    parser.add_argument(
        "--without",
        nargs="+",
        choices=COMPARISONS,
        metavar="NAME",
        help=f"what these optimisations add instead: {', '.join(COMPARISONS)}",
    )
    options = parser.parse_args()
    if options.without:
        for name in options.without:
            for line in COMPARISONS[name](options.batch):
                print(line, flush=True)
        return
    device = choose_device()
    peak = measure_matrix_peak(DTYPES[device.precision], device.torch_device, options.side)
    print(f"matrix peak in {device.precision}: {peak / 1e9:.0f} GFLOP/s")
    for strategy in ("last_block", "last_two_blocks"):
        tail = build_tail("resnet18", strategy, device, options.batch, options.image_size)
        achieved = tail.flops / statistics.median(time_runs(tail.step, device.torch_device))
        print(
            f"{strategy}, ResNet-18 at {options.image_size}: {achieved / 1e9:.0f} GFLOP/s, "
            f"{achieved / peak:.0%} of it"
        )


if __name__ == "__main__":
    main()
