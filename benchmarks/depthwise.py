"""Depthwise convolutions in bf16 and in fp32 within a bf16 training step of EfficientNet-Lite0 at 96 pixels, alternating.

python -m benchmarks.depthwise
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

from finetune_core.config import make_config
from finetune_core.models.network import build_network
from finetune_core.training.device import choose_device
from finetune_core.training.exact_layers import keep_depthwise_exact
from finetune_core.training.freezing import apply
from finetune_core.training.stage_plan import plan

BATCH, ROUNDS = 32, 7


def stepper(exact: bool) -> Callable[[], float]:
    network = build_network("efficientnet_lite0", "none", 10, 0)
    strategy = plan(make_config({"data": "none", "strategy": "full"}), network.stages)
    model = choose_device("cpu").hold(network.model)
    if exact:
        keep_depthwise_exact(strategy, network.stages, model)
    apply(strategy, network.stages, model, 1)
    images = torch.randn(BATCH, 3, 96, 96).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(BATCH, dtype=torch.long)

    def step() -> float:
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images)
        cross_entropy(logits.float(), labels).backward()
        return time.perf_counter() - began

    return step


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    plain, exact = stepper(False), stepper(True)
    plain(), exact()
    times = [(plain(), exact()) for _ in range(ROUNDS)]
    bf16, mixed = (statistics.median(pair[side] for pair in times) / BATCH * 1e3 for side in (0, 1))
    print(
        f"all in bf16: {bf16:.2f} ms an image; depthwise in fp32: {mixed:.2f} ms; {bf16 / mixed:.2f} times"
    )


if __name__ == "__main__":
    main()
