"""The last block's training step of ResNet-18 in bf16, its wide convolutions' weight gradients by oneDNN's kernel and as a product of
matrices (finetune_core/training/weight_gradients.py), alternating.

python -m benchmarks.weight_gradients [--batch 32]
"""

import argparse
import statistics
from unittest.mock import patch

import torch

from benchmarks.peak import ROUNDS, seconds, tail_of
from finetune_core.training import compute
from finetune_core.training.device import choose_device


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    device = choose_device("cpu", "bf16")
    product = tail_of("resnet18", "last_block", device, options.batch)
    with patch.object(compute, "use_products"):
        kernel = tail_of("resnet18", "last_block", device, options.batch)
    cpu = torch.device("cpu")
    times = [(seconds(kernel.step, cpu), seconds(product.step, cpu)) for _ in range(ROUNDS)]
    before, now = (statistics.median(pair[side] for pair in times) for side in (0, 1))
    ratios = sorted(one / other for one, other in times)
    print(
        f"a step takes {before * 1e3:.0f} ms with oneDNN's kernel, {now * 1e3:.0f} ms with products: "
        f"{statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


if __name__ == "__main__":
    main()
