"""Check timm's architectures without their weights: stages, replaceable head, and cuts.

    python -m benchmarks.walk_timm
    python -m benchmarks.walk_timm vit_small convnext
    python -m benchmarks.walk_timm --count
    python -m benchmarks.walk_timm --train

Prints a line for each architecture, and how many there are of each kind. ``--count`` completes
finetune_core/models/timm_parameters.csv instead. ``--train`` takes two full fine-tuning steps with
the smallest architecture of each family instead.

A network that cannot be cut between two stages trains without the cache if its strategy would cut
it there.
"""

import argparse
import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import timm
import torch
from torch import nn

from finetune_core.config import make_config
from finetune_core.errors import FinetuneError
from finetune_core.models import timm_networks
from finetune_core.models.catalogue import backbone_info, create_on_meta
from finetune_core.models.meta import skip_norms_on_meta
from finetune_core.models.network import build_network, head_paths, network_stages
from finetune_core.models.partition import SplitError, trace
from finetune_core.models.stages import Stage, replace_head
from finetune_core.training.devices.device import Device
from finetune_core.training.step.compute import place_network, train_step
from finetune_core.training.strategies.stage_plan import plan_strategy

CLASSES = 7
UNUSUAL = 1009  # number of classes that no other dimension of a network equals


@dataclass(frozen=True)
class WalkResult:
    """Result for one network.

    Attributes:
        name: name of the network.
        stages: names of its stages, input to head.
        problems: problems with the stages or the head. Empty if there are none.
        cuts: whether the network can be cut before each stage but the first.
        reason: why it cannot be cut at all. Empty if it can.
    """

    name: str
    stages: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    cuts: tuple[bool, ...] = ()
    reason: str = ""

    @property
    def kind(self) -> str:
        """The kind of network, by the cuts that are possible."""
        if self.problems:
            return "cannot be used"
        return (
            "every cut"
            if all(self.cuts) and self.cuts
            else "some cuts"
            if any(self.cuts)
            else "no cut"
        )


def walk(name: str) -> WalkResult:
    """Check one network, on the meta device."""
    model, built = _build(name)
    if model is None or built.problems:
        return built
    try:
        boundaries, reason = (
            trace(model, network_stages(name, CLASSES), backbone_info(name).image_size).boundaries,
            "",
        )
    except SplitError as error:
        boundaries, reason = (None,) * (len(built.stages) - 1), str(error)
    cuts = tuple(boundary is not None for boundary in boundaries)
    if not reason and not any(cuts):
        reason = "more than one value crosses between any two stages"
    return replace(built, cuts=cuts, reason=reason)


def find_problems(name: str) -> tuple[str, ...]:
    """Return the problems with a network's stages and head, without checking the cuts."""
    return _build(name)[1].problems


def _build(name: str) -> tuple[nn.Module | None, WalkResult]:
    """Build a network with a new head, and check it except for its cuts.

    Returns:
        The network, or None if it cannot be built, and the result.
    """
    try:
        stages, heads, side = (
            network_stages(name, CLASSES),
            head_paths(name),
            backbone_info(name).image_size,
        )
    except FinetuneError as error:
        return None, WalkResult(name, problems=(str(error),))
    model = create_on_meta(name).eval()
    for head in heads:
        replace_head(model, head, CLASSES)
    executions, output = _trace_execution(model, side)
    problems_found = (
        *_check_coverage(model, stages),
        *_check_order(stages, executions),
        *_check_head(stages, heads, output),
    )
    return model, WalkResult(name, tuple(stage.name for stage in stages), problems_found)


def _trace_execution(model: nn.Module, side: int) -> tuple[list[str], object]:
    """Run a network.

    Returns:
        Paths of the modules with parameters of their own, in the order in which they run, and the
        output of the network.
    """
    executions: list[str] = []
    hooks = [
        module.register_forward_pre_hook(
            lambda _module, _inputs, path=path: executions.append(path)
        )
        for path, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    with torch.no_grad(), skip_norms_on_meta():
        output = model(torch.empty(2, 3, side, side, device="meta"))
    for hook in hooks:
        hook.remove()
    return executions, output


def _check_coverage(model: nn.Module, stages: Sequence[Stage]) -> list[str]:
    problems = []
    for kind, tensors in (
        ("parameters", model.named_parameters()),
        ("buffers", model.named_buffers()),
    ):
        owned = Counter(name for stage in stages for name in getattr(stage, kind))
        if owned != Counter(name for name, _ in tensors):
            problems.append(f"not every one of its {kind} is in exactly one stage")
    return problems


def _check_order(stages: Sequence[Stage], executions: Iterable[str]) -> list[str]:
    stage_of = {
        name.rpartition(".")[0]: index
        for index, stage in enumerate(stages)
        for name in stage.parameters
        # Otherwise it belongs to a container, which starts before its members.
        if any(name.startswith(f"{module}.") for module in stage.modules)
    }
    order = [stage_of[path] for path in executions if path in stage_of]
    late = next(
        (stages[current].name for current, following in pairwise(order) if following < current),
        None,
    )
    return [f"after {late} an earlier stage runs again"] if late else []


def _check_head(stages: Sequence[Stage], heads: Sequence[str], output: object) -> list[str]:
    problems = []
    if stages[-1].name != "head" or not all(
        f"{head}.weight" in stages[-1].parameters for head in heads
    ):
        problems.append("its head is not its last stage")
    if not isinstance(output, torch.Tensor) or output.shape != (2, CLASSES):
        problems.append("with a new head it does not give one number per class")
    return problems


def find_smallest(module: str) -> str | None:
    """Return the classifier with the fewest parameters in a module of timm, or None."""
    names = [name for name in timm.list_models(module=module) if timm_networks.can_classify(name)]
    return min(
        names,
        key=lambda name: (
            timm_networks.known_parameter_count(f"{timm_networks.TIMM}{name}") or math.inf
        ),
        default=None,
    )


def train_in_subprocess(name: str, precision: str) -> str:
    """Take two full fine-tuning steps in a subprocess.

    Returns:
        The error, or an empty text.
    """
    code = "import sys; from benchmarks.walk_timm import train; train(*sys.argv[1:])"
    process = subprocess.run(
        [sys.executable, "-c", code, name, precision],
        # Overwrite freed memory, so that kernels that write out of bounds are noticed.
        env=os.environ | {"MALLOC_PERTURB_": "165"},
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
    )
    if process.returncode < 0:
        return signal.Signals(-process.returncode).name
    return process.stderr.strip().rpartition("\n")[2] if process.returncode else ""


def train(name: str, precision: str) -> None:
    """Take two full fine-tuning steps on the CPU, from random weights.

    Raises:
        ArithmeticError: if a gradient is not finite.
    """
    device = Device("cpu", "", precision)
    info = backbone_info(name)
    network = build_network(name, "none", CLASSES, 0, info.image_size)
    config = make_config({"data": "none", "backbone": name, "strategy": "full"})
    place_network(network, plan_strategy(config, network.stages), device)
    model = network.model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, fused=True)
    images = torch.randn(2, 3, info.image_size, info.image_size)
    images = images.contiguous(memory_format=device.layout)
    for step in range(2):
        outcome = train_step(model, images, torch.arange(2), optimizer, device, step)
        if not outcome.gradient_norm.isfinite():
            raise ArithmeticError("its gradient is not finite")


def complete_table(architectures: Iterable[str], seconds: float) -> None:
    """Add the missing architectures to the table of parameters.

    The table holds the number of parameters without the head, and of the head per class.

    Args:
        architectures: names of architectures.
        seconds: processor time after which no further architecture is counted.
    """
    file = Path(timm_networks.__file__).with_name("timm_parameters.csv")
    with file.open(encoding="utf-8", newline="") as opened:
        rows = {
            row["architecture"]: (row["body"], row["per_class"]) for row in csv.DictReader(opened)
        }
    start_time = time.process_time()
    for architecture in architectures:
        if architecture not in rows and time.process_time() - start_time < seconds:
            body, per_class = count_parameters(architecture)
            rows[architecture] = str(body), str(per_class)
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(["architecture", "body", "per_class"])
        writer.writerows([name, *rows[name]] for name in sorted(rows))


def count_parameters(architecture: str) -> tuple[int, int]:
    """Return the number of parameters without the head, and of the head per class."""
    model = create_on_meta(f"{timm_networks.TIMM}{architecture}", classes=UNUSUAL)
    sizes = [tensor.shape for tensor in model.parameters()]
    heads = sum(math.prod(shape) for shape in sizes if shape[:1] == (UNUSUAL,))
    return sum(map(math.prod, sizes)) - heads, heads // UNUSUAL


def walk_training(words: Sequence[str]) -> None:
    """Print the error, if any, of each family's smallest architecture in each precision."""
    for module in timm.list_modules():
        name = find_smallest(module)
        if name is None or (words and not any(word in name for word in words)):
            continue
        for precision in ("fp32", "bf16"):
            problem = train_in_subprocess(f"{timm_networks.TIMM}{name}", precision)
            row = {"name": name, "precision": precision, "problem": problem}
            print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words", nargs="*", help="only architectures with one of these in their name"
    )
    parser.add_argument(
        "--count", action="store_true", help="add parameters to the table that it lacks"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=math.inf,
        help="of counting, after which it can be gone on with",
    )
    parser.add_argument(
        "--train", action="store_true", help="take steps on the smallest architecture per family"
    )
    options = parser.parse_args()
    if options.train:
        walk_training(options.words)
        return
    torch.set_num_threads(1)  # tensors on the meta device hold no numbers
    architectures = [
        name
        for name in timm.list_models()
        if not options.words or any(word in name for word in options.words)
    ]
    if options.count:
        complete_table(architectures, options.seconds)
        return
    kinds = Counter[str]()
    for architecture in architectures:
        walked = walk(f"{timm_networks.TIMM}{architecture}")
        kinds[walked.kind] += 1
        print(json.dumps(asdict(walked) | {"kind": walked.kind}), flush=True)
    print(json.dumps(dict(kinds)))


if __name__ == "__main__":
    main()
