"""The tail's training step against the machine's measured matrix peak in the same precision.

python -m benchmarks.peak
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from finetune_core.config import make_config
from finetune_core.models.network import build_network
from finetune_core.training.compute import place, train_step
from finetune_core.training.device import choose_device
from finetune_core.training.freezing import apply
from finetune_core.training.optimizers import make_optimizer
from finetune_core.training.stage_plan import cut_index, plan
from finetune_core.training.trunk import split_network

BATCH, ROUNDS, SIDE = 32, 9, 4096


def median_seconds(run: Callable[[], object]) -> float:
    run()
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def matrix_peak(dtype: torch.dtype) -> float:
    a, b = torch.randn(SIDE, SIDE, dtype=dtype), torch.randn(SIDE, SIDE, dtype=dtype)
    return 2 * SIDE**3 / median_seconds(lambda: a @ b)


def tail_step(strategy_name: str) -> Callable[[], object]:
    config = make_config({"data": "none", "backbone": "resnet18", "strategy": strategy_name})
    device = choose_device()
    network = build_network("resnet18", "none", 10, 0)
    strategy = plan(config, network.stages)
    place(network, strategy, device)
    cut, segments = cut_index(strategy), split_network(network)
    images = torch.randn(BATCH, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), device.autocast():
        inputs = segments.part(None, cut).eval()(images)
    tail = segments.part(cut, None)
    apply(strategy, network.stages, network.model, 1)
    optimizer = make_optimizer(config, strategy, network.stages, network.model)
    labels = torch.zeros(BATCH, dtype=torch.long)

    return lambda: train_step(tail, inputs, labels, optimizer, device, 0)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    precision = choose_device().precision
    peak = matrix_peak(torch.bfloat16 if precision == "bf16" else torch.float32)
    print(f"matrix peak in {precision}: {peak / 1e9:.0f} GFLOP/s")
    for name in ("last_block", "last_two_blocks"):
        step = tail_step(name)
        with FlopCounterMode(display=False) as counter:
            step()
        achieved = counter.get_total_flops() / median_seconds(step)
        print(f"{name}, ResNet-18 at 224: {achieved / 1e9:.0f} GFLOP/s, {achieved / peak:.0%} of it")


if __name__ == "__main__":
    main()
