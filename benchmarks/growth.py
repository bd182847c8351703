"""How a cached run's cost grows with the data: the same job on 1, 4 and 16 times as many images.

python -m benchmarks.growth
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.speed import write_images

BASE, EPOCHS = 400, 3
CHILD = """
import json, resource, sys
from pathlib import Path
from finetune_core.config import make_config
from finetune_core.training.loop import fit
settings = {"data": sys.argv[1], "strategy": "last_block", "weights": "none", "epochs": int(sys.argv[2]), "image_size": 96}
events = list(fit(make_config(settings), Path(sys.argv[3])))
last = {type(event).__name__: event for event in events}
cache = last["RunStarted"].cache
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"epoch": last["EpochEnded"].train_seconds, "trunk": cache.trunk_seconds, "where": cache.where,
                  "bytes": cache.bytes, "peak": peak}))
"""


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    for factor in (1, 4, 16):
        with tempfile.TemporaryDirectory() as base:
            data, run_dir = Path(base, "data"), Path(base, "run")
            run_dir.mkdir()
            write_images(data, BASE * factor, BASE * factor // 4)
            environment = os.environ | {
                "THAW_HOME": base,
                "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
            }
            command = [sys.executable, "-c", CHILD, str(data), str(EPOCHS), str(run_dir)]
            measured = json.loads(
                subprocess.run(
                    command, env=environment, capture_output=True, text=True, check=True
                ).stdout
            )
        images = BASE * factor
        print(
            f"{images:,} training images: {measured['epoch'] / images * 1e3:.3f} ms per image in a cached epoch, "
            f"{measured['trunk'] / (images * 1.25) * 1e3:.2f} ms once for the trunk; cache {measured['bytes'] / 1e6:.0f} MB {measured['where']}, "
            f"peak {measured['peak'] / 1e9:.2f} GB",
            flush=True,
        )


if __name__ == "__main__":
    main()
