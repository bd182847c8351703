"""How the cost of listing runs grows with their number: generated run folders, without checkpoints and predictions.

Prints one JSON object per number of runs: for each span its seconds of wall clock (``wall_s``) and of processor time (``cpu_s``), and
the process's largest memory before and after it (``base_mb``, ``peak_mb``).

python -m benchmarks.many_runs [--runs 1000 10000] [--steps 160]
"""

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.parts import Found, Part, app_at, draw, measured, run_child
from finetune_core.config import CONFIG_FILE, config_bytes, make_config
from finetune_core.runs.record import EVENTS_FILE
from finetune_core.training.events import (
    CacheReport,
    Counts,
    EpochEnded,
    Event,
    RunFinished,
    RunStarted,
    StageMeasure,
    StageRow,
    StepEnded,
)

EPOCHS, MEASURED_EVERY, BATCH = 8, 10, 32
STAGES = ("stem", *(f"block{number}" for number in range(1, 8)), "head")
BACKBONE, STRATEGY = "efficientnet_lite0", "full"


def write_runs(folder: Path, count: int, steps: int) -> None:
    """Finished runs of 8 epochs and so many steps, a second apart."""
    content = b"".join(
        json.dumps(event.to_json() | {"at": 1.7e9 + at}).encode() + b"\n"
        for at, event in enumerate(events(steps))
    )
    for number in range(count):
        minutes, second = divmod(number, 60)
        hours, minute = divmod(minutes, 60)
        day, hour = divmod(hours, 24)
        run = (
            folder
            / f"202601{day + 1:02}-{hour:02}{minute:02}{second:02}-{BACKBONE}-{STRATEGY}-{number:08x}"
        )
        run.mkdir(parents=True)
        config = make_config(
            {
                "data": str(folder),
                "backbone": BACKBONE,
                "strategy": STRATEGY,
                "epochs": EPOCHS,
                "seed": number,
            }
        )
        (run / CONFIG_FILE).write_bytes(config_bytes(config))
        (run / EVENTS_FILE).write_bytes(content)


def events(steps: int) -> list[Event]:
    """Those of one run."""
    each = -(-steps // EPOCHS)
    counts = Counts(train=each * BATCH, val=200, test=200)
    found: list[Event] = [
        RunStarted(
            backbone=BACKBONE,
            weights="pretrained",
            weights_hash="0" * 16,
            strategy=STRATEGY,
            stages=[
                StageRow(
                    name=name, parameters=1000, trains=True, trained=1000, rate=1.0, thaw_epoch=1
                )
                for name in STAGES
            ],
            trainable_parameters=9000,
            total_parameters=9000,
            classes=[str(name) for name in range(10)],
            counts=counts,
            fingerprint="0" * 16,
            findings=[],
            epochs=EPOCHS,
            steps_per_epoch=each,
            device="cpu",
            device_label="Processor",
            precision="fp32",
            cache=CacheReport("memory", rows=counts["train"], bytes=1000),
        )
    ]
    measures = {
        name: StageMeasure(learning_rate=1e-3, gradient_norm=1.234567, update=0.001234)
        for name in STAGES
    }
    for number in range(EPOCHS * each):
        epoch, step = number // each + 1, number % each + 1
        watched = measures if number % MEASURED_EVERY == 0 else None
        images, seconds = (number + 1) * BATCH, 0.1 * (number + 1)
        found.append(
            StepEnded(
                epoch, step, 1.2345, 1.2345, 0.75, 1e-3, images, seconds, 1.234567, BATCH, watched
            )
        )
        if step == each:
            found.append(EpochEnded(epoch, 0.5, 0.9, 0.6, 0.8, 0.1 * each, 0.5, seconds))
    return [
        *found,
        RunFinished(EPOCHS, 1, 0.8, 0.6, 0.8, seconds + 10, evaluation_precision="fp32"),
    ]


def listing(part: Part, folder: Path) -> None:
    """All runs, read for the first time and looked at again."""
    from finetune_core.runs.store import RunStore

    store = RunStore(folder)
    for name in ("list", "list_again"):
        with part.timed(name):
            runs, damaged = store.all()
        if damaged:
            raise RuntimeError(damaged[0].reason)
    part.found["runs"] = len(runs)


def pages(part: Part, _: Path) -> None:
    """The pages Runs and Train, opened and drawn again."""
    for name in ("runs", "train"):
        draw(part, app_at(f"pages/{name}.py"), f"page_{name}")


PARTS = {"list": listing, "pages": pages}


def measure(count: int, steps: int) -> Found:
    with tempfile.TemporaryDirectory() as temporary:
        write_runs(folder := Path(temporary, "runs"), count, steps)
        return {"runs": count, "steps": steps} | {
            name: measured("many_runs", name, folder, Path(temporary)) for name in PARTS
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--steps", type=int, default=160, help="of each run")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_child(PARTS, options.child[0], Path(options.child[1]))
        return
    for count in options.runs:
        print(json.dumps(measure(count, options.steps)), flush=True)


if __name__ == "__main__":
    main()
