"""Where the time of a training step on a processor goes: oneDNN's own report splits the convolutions, torch's profiler has the rest."""

import os
import re
import statistics
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

CONVOLUTIONS = {
    "forward_training": "convolutions, forward",
    "backward_data": "convolutions, backward: inputs",
    "backward_weights": "convolutions, backward: weights",
}
REORDERS = "changes of layout for convolutions"
REST = "everything else"
# torch's operators by part, as their names begin.
PARTS = {
    "BatchNorm": ("native_batch_norm", "batch_norm"),
    "casts and copies": ("copy_", "_to_copy"),
    "ReLU, additions, pooling": (
        "threshold_backward",
        "clamp_min",
        "relu",
        "add",
        "mean",
        "div",
        "max_pool",
    ),
    "gradient norm": ("linalg_vector_norm", "_foreach_norm"),
    "optimizer": ("_fused_adam", "_fused_sgd", "Optimizer.step"),
    "matrix products: wide convolutions' weights, head": ("mm", "addmm", "linear"),
    "loss": ("_log_softmax", "nll_loss", "sum"),
}
_WITHIN_CONVOLUTIONS = ("mkldnn_convolution", "convolution_backward", "mkldnn_convolution_backward")
_SIZES = re.compile(r"(mb|ic|oc|oh|ow|kh|kw)(\d+)")


def profiled(step: Callable[[], object], rounds: int, peak: float) -> list[str]:
    """A Markdown table: each part's milliseconds (the median over the rounds), its share, and the FLOP/s of convolutions."""
    milliseconds, flops = _measured(step, rounds)
    total = sum(milliseconds.values())
    lines = ["", "| part of a step | ms | share | GFLOP/s | of the peak |", "|---|---|---|---|---|"]
    for part, spent in sorted(milliseconds.items(), key=lambda item: -item[1]):
        rate = flops[part] / spent * 1e3
        speed = f"{rate / 1e9:,.0f} | {rate / peak:.0%}" if rate else " | "
        lines.append(f"| {part} | {spent:.1f} | {spent / total:.1%} | {speed} |")
    return [*lines, ""]


def _measured(step: Callable[[], object], rounds: int) -> tuple[dict[str, float], Counter[str]]:
    """Milliseconds by part, and the floating-point operations of those that are convolutions."""
    found, flops = [], Counter[str]()
    for _ in range(rounds):
        onednn, flops = by_primitive(_written(partial(_reporting, step)))
        with profile(activities=[ProfilerActivity.CPU]) as events:
            step()
        operators = {event.key: event.self_cpu_time_total / 1e3 for event in events.key_averages()}
        found.append(onednn | by_operator(operators))
    parts = {part for one in found for part in one}
    return {part: statistics.median(one[part] for one in found) for part in parts}, flops


def _reporting(step: Callable[[], object]) -> None:
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        step()


def by_primitive(lines: Iterable[str]) -> tuple[dict[str, float], Counter[str]]:
    """oneDNN's report of a step -> milliseconds of convolutions and of changes of layout, and operations of the convolutions."""
    milliseconds: dict[str, float] = defaultdict(float)
    flops = Counter[str]()
    for line in lines:
        fields = line.split(",")
        if fields[0] != "onednn_verbose" or fields[3:4] != ["exec"]:
            continue
        kind, direction, problem = fields[5], fields[7], fields[-2]
        if kind == "reorder":
            milliseconds[REORDERS] += float(fields[-1])
        elif kind == "convolution":
            part = CONVOLUTIONS[direction]
            milliseconds[part] += float(fields[-1])
            flops[part] += _operations(problem)
    return milliseconds, flops


def _operations(problem: str) -> int:
    """Of a convolution as oneDNN writes it: ``mb32_ic512oc512_ih7oh7kh3sh1dh0ph1_iw7ow7kw3sw1dw0pw1``, grouped with ``g32`` before."""
    operations = 2
    for _, size in _SIZES.findall(problem):
        operations *= int(size)
    groups = re.search(r"(?:^|_)g(\d+)", problem)
    return operations // int(groups[1] if groups else 1)


def by_operator(milliseconds: Mapping[str, float]) -> dict[str, float]:
    """torch's operators -> parts; what lies within convolutions is left out."""
    parts: dict[str, float] = defaultdict(float)
    for key, spent in milliseconds.items():
        name = key.removeprefix("aten::")
        if name not in _WITHIN_CONVOLUTIONS:
            parts[
                next((part for part, begins in PARTS.items() if name.startswith(begins)), REST)
            ] += spent
    return parts


def _written(run: Callable[[], object]) -> list[str]:
    """The lines that libraries write to the process's stdout meanwhile: oneDNN does not go through Python's."""
    sys.stdout.flush()
    before = os.dup(1)
    with tempfile.TemporaryFile("w+") as file:
        os.dup2(file.fileno(), 1)
        try:
            run()
        finally:
            os.dup2(before, 1)
            os.close(before)
        file.seek(0)
        return file.read().splitlines()
