"""Child process that compiles a part of a network.

It is a process of its own because Dynamo is not thread-safe, and compiling holds the interpreter
lock.

``python -m finetune_core.training.compile.child FOLDER`` reads ``request.pt`` there and writes
``package.pt2``. Errors are written to stderr. The process ends when its stdin does, with everything
it has started, so it never outlives the process that asked for it.
"""

import copy
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_core.lifeline import exit_with_stdin

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

    from finetune_core.training.devices.device import Device

# How many times as far from fp32 as the eager pass a compiled pass may be. On one batch two
# roundings differ by a few percent.
_ALLOWED = 1.1
# Relative distance between two ways to compute in fp32.
_EXACT = 1e-5


def main(folder: Path) -> None:
    """Compile, compare with the eager pass, and only then leave a package."""
    os.nice(19)  # training has priority
    with suppress(OSError):
        # Also where memory runs out: the kernel kills this process first.
        Path("/proc/self/oom_score_adj").write_text("1000")
    import torch
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    from finetune_core.training.compile.folding import scale_convolutions

    torch.set_num_threads(1)
    request = torch.load(folder / "request.pt", weights_only=False)
    part, example, device = request["part"].eval(), request["example"], request["device"]
    folded = copy.deepcopy(part)
    if device.precision == "bf16":
        scale_convolutions(folded)
    with torch.no_grad(), device.autocast():
        exported = torch.export.export(folded, (example,))
        file = aoti_compile_and_package(
            exported,
            package_path=str(folder / "compiled.pt2"),
            inductor_configs={"freezing": True, "cpp.threads": request["threads"]},
        )
    if problem := find_difference(part, aoti_load_package(file), example, device):
        sys.exit(problem)
    os.replace(file, folder / "package.pt2")


def find_difference(
    part: "nn.Module",
    compiled: "Callable[[torch.Tensor], torch.Tensor]",
    example: "torch.Tensor",
    device: "Device",
) -> str:
    """Return what is wrong with a compiled pass. Empty where it may replace the eager one."""
    import torch

    with torch.no_grad():
        with device.autocast():
            eager = part(example)
        exact, fast = part(example).double(), compiled(example)
    if (fast.shape, fast.dtype, fast.stride()) != (eager.shape, eager.dtype, eager.stride()):
        return "its output has another shape, type or layout"
    size = exact.norm()
    usual, found = (float((one.double() - exact).norm() / size) for one in (eager, fast))
    # Also true when ``found`` is NaN.
    if not found <= max(_ALLOWED * usual, _EXACT):
        return f"it is {found:.2g} from fp32, the eager pass {usual:.2g}"
    return ""


if __name__ == "__main__":
    exit_with_stdin()
    main(Path(sys.argv[1]))
