r"""Speed of Thaw on this machine's GPU, and the whole test suite.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --device cpu --networks resnet18 --train 64 --val 16 \
        --image-size 64 --batch 8 --no-suite

Training steps are compared with the measured matrix peak and memory bandwidth, whole jobs with the
plain loop (``plain_loop.py``), alternating between the sides. The last lines are meant for the
README.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import plain_loop
from benchmarks.peak import (
    CLASSES,
    DTYPES,
    ROUNDS,
    Tail,
    build_tail,
    measure_matrix_peak,
    time_run,
    time_runs,
)
from benchmarks.speed import PLAIN, ROOT, Work, run_other, run_thaw, write_images
from finetune_core.errors import ConfigError
from finetune_core.formatting import pluralize
from finetune_core.models.network import check_image_size
from finetune_core.training.devices.device import Device, choose_device

NETWORKS = {"resnet18": "ResNet-18", "vit_b_16": "ViT-B/16"}
STRATEGIES = {"feature_extraction": "head only", "last_block": "last block", "full": "full"}
AUTOCAST, THAW = "with autocast", "Thaw"


@dataclass(frozen=True)
class Peaks:
    """Measured peaks of the device.

    Attributes:
        matrix: precision -> FLOP/s of matrix products. "fp32" is without TF32.
        bandwidth: bytes per second of a copy, counting reads and writes.
    """

    matrix: Mapping[str, float]
    bandwidth: float

    def __str__(self) -> str:
        rates = ", ".join(
            f"{rate / 1e12:.3g} TFLOP/s in {precision}" for precision, rate in self.matrix.items()
        )
        return f"matrix peak {rates}; memory {self.bandwidth / 1e9:,.0f} GB/s"


@dataclass(frozen=True)
class Row:
    """Result of one network with one strategy.

    Attributes:
        network: the network.
        strategy: the strategy.
        speeds: side -> training images per second of the whole job, median of the rounds.
        ratios: speed of Thaw divided by that of the plain loop, by round.
        share: share of the matrix peak that Thaw's step reaches.
    """

    network: str
    strategy: str
    speeds: Mapping[str, float]
    ratios: Sequence[float]
    share: float


def measure_peaks(device: torch.device, side: int, copied: int) -> Peaks:
    """Measure the peaks with matrices of ``side`` rows and copies of ``copied`` bytes."""
    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * copied / min(time_runs(lambda: target.copy_(source), device))
    return Peaks(
        {name: measure_matrix_peak(dtype, device, side) for name, dtype in DTYPES.items()},
        bandwidth,
    )


def make_plain_step(
    network: str, strategy: str, batch: int, size: int, device: torch.device, autocast: bool
) -> Callable[[], object]:
    """Return a function that takes one training step of the plain loop."""
    model = plain_loop.build_model(network, strategy, CLASSES).to(device).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    images, labels = (
        torch.randn(batch, 3, size, size, device=device),
        torch.zeros(batch, dtype=torch.long, device=device),
    )
    return lambda: plain_loop.train_step(model, images, labels, optimizer, autocast)[0].item()


def time_steps(
    network: str, strategy: str, tail: Tail, batch: int, size: int, device: torch.device
) -> dict[str, float]:
    """Return the median seconds of a training step by side, alternating between the sides.

    The images are on the device already.
    """
    sides = {
        PLAIN: make_plain_step(network, strategy, batch, size, device, autocast=False),
        AUTOCAST: make_plain_step(network, strategy, batch, size, device, autocast=True),
        THAW: tail.step,
    }
    for step in sides.values():
        step(), step()
    rounds = [{side: time_run(step, device) for side, step in sides.items()} for _ in range(ROUNDS)]
    return {side: statistics.median(one[side] for one in rounds) for side in sides}


def measure_jobs(
    work: Work, strategy: str, rounds: int, images: int
) -> tuple[list[dict[str, float]], float]:
    """Measure whole jobs in alternating rounds.

    Returns:
        Training images per second by side, for each round, and the seconds of a training epoch of
        Thaw in the last round.
    """
    speeds, epoch = [], 0.0
    autocast = Work(
        work.folder, work.network, work.epochs, work.measured, (*work.options, "--autocast")
    )
    for _ in range(rounds):
        seconds = {
            PLAIN: run_other(PLAIN, work, strategy)["seconds"],
            AUTOCAST: run_other(PLAIN, autocast, strategy)["seconds"],
        }
        result = run_thaw(work, (strategy,))
        seconds[THAW], epoch = result["seconds"], result["epoch"]
        speeds.append({side: work.epochs * images / spent for side, spent in seconds.items()})
    return speeds, epoch


def estimate_min_seconds(tail: Tail, images: int, batch: int, bandwidth: float) -> float:
    """Return the smallest time of a head's epoch that the memory bandwidth allows.

    Each activation is read once. In each step Adam reads and writes weights, gradients and its two
    moments, in fp32.
    """
    activations = images * tail.inputs.numel() * tail.inputs.element_size() / batch
    return (activations + -(-images // batch) * 8 * 4 * tail.parameters) / bandwidth


def choose_image_size(network: str, size: int) -> int:
    """Return the image size, or 224 if the network does not take it."""
    try:
        check_image_size(network, size)
    except ConfigError:
        return 224
    return size


def measure(
    network: str,
    strategy: str,
    folder: Path,
    device: Device,
    peaks: Peaks,
    options: argparse.Namespace,
) -> Row:
    """Measure the steps and the jobs of one row of the table, and print further numbers."""
    size = choose_image_size(network, options.image_size)
    tail = build_tail(network, strategy, device, options.batch, size)
    step_seconds = time_steps(network, strategy, tail, options.batch, size, device.torch_device)
    rate = tail.flops / step_seconds[THAW]
    share = rate / peaks.matrix[device.precision]
    print(
        f"{NETWORKS[network]}, {STRATEGIES[strategy]}: a step of {options.batch} images takes "
        f"{step_seconds[PLAIN] * 1e3:.2f} ms plainly, "
        f"{step_seconds[AUTOCAST] * 1e3:.2f} ms with autocast, "
        f"{step_seconds[THAW] * 1e3:.2f} ms in Thaw: {rate / 1e12:.3g} TFLOP/s in "
        f"{device.precision}, {share:.1%} of the peak",
        flush=True,
    )
    shared = ("--network", network, "--image-size", str(size), "--batch", str(options.batch))
    arguments = (*shared, "--workers", str(options.workers), "--device", device.kind)
    settings: dict[str, Any] = {
        "image_size": size,
        "batch_size": options.batch,
        "device": device.kind,
    }
    work = Work(folder, network, options.epochs, options.plain_epochs, arguments, settings)
    rounds, epoch = measure_jobs(work, strategy, options.rounds, options.train)
    if strategy == "feature_extraction":
        minimum = estimate_min_seconds(tail, options.train, options.batch, peaks.bandwidth)
        print(
            f"  an epoch trains for {epoch * 1e3:.1f} ms; at the memory's bandwidth it would "
            f"be {minimum * 1e3:.2f} ms",
            flush=True,
        )
    speeds = {side: statistics.median(one[side] for one in rounds) for side in rounds[0]}
    return Row(network, strategy, speeds, [one[THAW] / one[PLAIN] for one in rounds], share)


def format_table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the table in Markdown."""
    lines = [
        "| training images per second | plain loop | with autocast | Thaw | times (range) | "
        "step, of peak |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        speeds = " | ".join(f"{row.speeds[side]:,.0f}" for side in (PLAIN, AUTOCAST, THAW))
        times = (
            f"{statistics.median(row.ratios):.1f} ({min(row.ratios):.1f} to {max(row.ratios):.1f})"
        )
        lines.append(
            f"| {NETWORKS[row.network]}, {STRATEGIES[row.strategy]} | {speeds} | {times} | "
            f"{row.share:.1%} |"
        )
    return lines


def describe_machine(device: Device) -> str:
    """Return the device and the versions in one line."""
    if device.kind != "cuda":
        return f"{device.label}, torch {torch.__version__}"
    properties = torch.cuda.get_device_properties(0)
    return (
        f"{device.label}, {properties.total_memory / 1e9:.0f} GB, compute capability "
        f"{properties.major}.{properties.minor}, torch {torch.__version__}, CUDA "
        f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    )


def run_suite(arguments: Sequence[str] = ()) -> tuple[str, bool]:
    """Run pytest and print the failures.

    Returns:
        Its last line, and whether all tests passed.
    """
    process = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = (process.stdout + process.stderr).strip().splitlines() or ["pytest printed nothing"]
    print(*(line for line in lines if line.startswith(("FAILED", "ERROR"))), sep="\n", flush=True)
    return lines[-1].strip("= "), process.returncode == 0


def read_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "mps", "cpu"), default="cuda")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--train", type=int, default=2000, help="training images")
    parser.add_argument("--val", type=int, default=650, help="validation images")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument(
        "--plain-epochs", type=int, default=2, help="how many of them the plain loop runs"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=4,
        help="processes that decode for the plain loop; torch's tutorial has 4",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=8192, help="of the matrices")
    parser.add_argument("--copied", type=int, default=1024, help="megabytes that are copied")
    parser.add_argument(
        "--suite",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run the whole test suite, too",
    )
    return parser.parse_args()


def main() -> None:
    options = read_options()
    try:
        device = choose_device(options.device)
    except ConfigError as error:
        raise SystemExit(
            f"Nothing was measured: {error}. --device cpu runs the same on the processor."
        ) from None
    print(describe_machine(device), flush=True)
    peaks = measure_peaks(device.torch_device, options.side, options.copied << 20)
    print(peaks, flush=True)
    with tempfile.TemporaryDirectory() as base:
        write_images(Path(base), options.train, options.val)
        cases = [
            (network, name)
            for network in options.networks.split(",")
            for name in options.strategies.split(",")
        ]
        rows = [
            measure(network, name, Path(base), device, peaks, options) for network, name in cases
        ]
    last_line, passed = run_suite() if options.suite else ("not run", True)
    print(
        "",
        f"{describe_machine(device)}: {peaks}. {options.train:,} + {options.val:,} images of "
        f"320 pixels, batch {options.batch}, {options.epochs} epochs, the plain loop with "
        f"{options.workers} workers; whole jobs, {pluralize(options.rounds, 'round')} "
        f"(`benchmarks/gpu.py`). Tests: {last_line}.",
        "",
        *format_table(rows),
        sep="\n",
    )
    sys.exit(not passed)


if __name__ == "__main__":
    main()
