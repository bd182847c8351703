"""What finetune_core/memory.py is worth: ResNet-18 steps in a worker thread, with and without it, alternating.

python -m benchmarks.allocator
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROUNDS = 3
CHILD = """
import json, sys, threading, time
if sys.argv[1] == "tuned":
    import finetune_core
import torch, torchvision

def work():
    model = torchvision.models.resnet18().to(memory_format=torch.channels_last)
    images = torch.randn(32, 3, 224, 224).to(memory_format=torch.channels_last)
    def forward():
        with torch.no_grad():
            model.eval()(images)
    def step():
        model.train()(images).sum().backward()
    speeds = {}
    for name, run in (("forward", forward), ("step", step)):
        run()
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < 4:
            run()
            count += 1
        speeds[name] = 32 * count / (time.perf_counter() - began)
    print(json.dumps(speeds))

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def measure(side: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, side],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    speeds: dict[str, float] = json.loads(done.stdout)
    return speeds


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    rounds = [(measure("default"), measure("tuned")) for _ in range(ROUNDS)]
    for name in ("forward", "step"):
        default, tuned = ([pair[side][name] for pair in rounds] for side in (0, 1))
        ratio = statistics.median(t / d for d, t in zip(default, tuned, strict=True))
        print(
            f"{name}: {statistics.median(default):.0f} images/s by default, {statistics.median(tuned):.0f} tuned, {ratio:.2f} times"
        )


if __name__ == "__main__":
    main()
