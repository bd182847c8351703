"""Growth of cost with the number of images in a data set, and of runs in a directory.

    python -m benchmarks.scale --images 10000 100000
    python -m benchmarks.scale --runs 1000 10000

Prints one JSON object per number. Each part of a benchmark runs in a process of its own. A part
reports, for each span, its seconds of wall clock (``wall_s``) and of processor time (``cpu_s``),
and the largest memory of the process before and after it in MB (``base_mb``, ``peak_mb``). Images
and runs are generated. Runs have settings and events only, neither checkpoints nor predictions.
"""

import argparse
import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune_core.config import CONFIG_FILE, config_bytes, make_config
from finetune_core.work import finish

if TYPE_CHECKING:  # at run time each part imports only what it needs, to measure its memory
    from streamlit.testing.v1 import AppTest

    from finetune_core.training.events import Event

ROOT = Path(__file__).resolve().parent.parent
CLASSES, SMALLEST, LARGEST = 10, 28, 40  # pixels
COARSE, NOISE = 5, 12  # colours per side, which are blended; gray levels
BLOCK = 1000  # images of one size, including an exact copy and a darker copy
VALUES, BATCH = 512, 1024  # values of a cached row; rows per read
SHARE_CHANGED, A_PAGE = 10, 24  # every tenth image; images per page
READY = ".ready"
EPOCHS, MEASURED_EVERY, RUN_BATCH = 8, 10, 32  # of a generated run
STAGES = ("stem", *(f"block{number}" for number in range(1, 8)), "head")
BACKBONE, STRATEGY = "efficientnet_lite0", "full"


def memory_mb() -> float:
    """Return the peak memory of this process in MB."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (1e6 if sys.platform == "darwin" else 1e3)


class Part:
    """Spans of wall clock and processor time, measured in a process of their own."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {"base_mb": round(memory_mb())}

    @contextmanager
    def time_span(self, name: str) -> Iterator[None]:
        """Measure a span."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.found[name] = {
            "wall_s": round(time.perf_counter() - wall, 3),
            "cpu_s": round(time.process_time() - cpu, 3),
            "peak_mb": round(memory_mb()),
        }


def open_app(page: str) -> "AppTest":
    """Return the app at a page (``pages/runs.py``), to be drawn without a browser."""
    from streamlit.testing.v1 import AppTest

    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=3600)
    app.switch_page(page)
    return app


def draw(part: Part, app: "AppTest", name: str) -> None:
    """Draw the page twice, and count the bytes that are sent to the browser."""
    from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
    from streamlit.testing.v1.local_script_runner import LocalScriptRunner

    sent = [0]
    messages = LocalScriptRunner.forward_msgs

    def count_messages(runner: LocalScriptRunner) -> list[ForwardMsg]:
        found = messages(runner)
        sent[0] = sum(message.ByteSize() for message in found)
        return found

    LocalScriptRunner.forward_msgs = count_messages  # type: ignore[assignment, method-assign]
    try:
        for span in (name, f"{name}_again"):
            with part.time_span(span):
                app.run()
            if app.exception:
                raise RuntimeError(app.exception[0].message)
            part.found[span]["sent_kb"] = round(sent[0] / 1e3)
    finally:
        LocalScriptRunner.forward_msgs = messages  # type: ignore[method-assign]


def write_images(folder: Path, count: int) -> None:
    """Write PNGs of 28 to 40 pixels in ten classes, unless the folder has them.

    Each image mixes the colours of its class with colours of its own.
    """
    if (folder / READY).exists():
        return
    random = np.random.default_rng(0)
    of_class = random.integers(0, 256, (CLASSES, COARSE, COARSE, 3)).astype(np.float32)
    for name in range(CLASSES):
        (folder / f"class{name}").mkdir(parents=True, exist_ok=True)
    for start in range(0, count, BLOCK):
        images = generate_images(random, of_class[np.arange(BLOCK) % CLASSES])
        images[BLOCK // 4] = images[BLOCK // 4 - CLASSES]
        images[BLOCK // 2] = (images[BLOCK // 2 - CLASSES] * 0.85).astype(np.uint8)
        for number, pixels in enumerate(images[: count - start], start):
            Path(folder, f"class{number % CLASSES}", f"{number:08d}.png").write_bytes(
                encode_png(pixels)
            )
    (folder / READY).touch()


def generate_images(random: np.random.Generator, of_class: np.ndarray) -> np.ndarray:
    """Return uint8 ``[n, side, side, 3]`` for class colours ``[n, COARSE, COARSE, 3]``."""
    side = int(random.integers(SMALLEST, LARGEST + 1))
    position = np.arange(COARSE)
    bilinear = np.maximum(
        0, 1 - np.abs(np.linspace(0, COARSE - 1, side)[:, None] - position)
    ).astype(np.float32)
    coarse = 0.4 * of_class + 0.6 * random.integers(0, 256, of_class.shape).astype(np.float32)
    smooth = np.einsum("yi,nijc,xj->nyxc", bilinear, coarse, bilinear, optimize=True)
    smooth += random.integers(-NOISE, NOISE + 1, smooth.shape, np.int8)
    pixels: np.ndarray = smooth.clip(0, 255).astype(np.uint8)
    return pixels


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode an RGB image ten times as fast as Pillow does for images this small."""
    height, width, _ = pixels.shape
    # Each line starts with the number of its filter.
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(lines.tobytes(), 1))
        + chunk(b"IEND", b"")
    )


def measure_index(part: Part, data: Path) -> None:
    """Read every file, compare the images, and store the index."""
    from finetune_core.data.dataset import index_data

    with part.time_span("index"):
        finish(index_data(data))


def measure_split(part: Part, data: Path) -> None:
    """Open the index, then split and check twice."""
    from finetune_core.data.checks import (
        find_class_problems,
        find_copy_problems,
        find_image_problems,
    )
    from finetune_core.data.dataset import assemble_dataset, index_data

    settings = make_config({"data": str(data)}).split_settings
    with part.time_span("open_again"):
        index = finish(index_data(data))
    with part.time_span("split_and_check"):
        dataset = assemble_dataset(data, index, **settings, edits=())
    with part.time_span("split_and_check_again"):
        assemble_dataset(data, index, **settings, edits=())
    with part.time_span("check"):
        findings = [
            *find_copy_problems(dataset.table),
            *find_class_problems(dataset.table, dataset.classes),
            *find_image_problems(dataset.table),
        ]
    with part.time_span("fingerprint"):
        part.found["split"] = dataset.split_counts
        part.found["fingerprint_is"] = dataset.fingerprint
    part.found["findings"] = {one.kind: one.count for one in findings}


def measure_page(part: Part, data: Path) -> None:
    """Draw three views of the Dataset page, without a browser."""
    from finetune_core.data.recent import remember_source

    os.environ["THAW_DATA_ROOTS"] = str(data.parent)
    app = open_app("pages/dataset.py")
    app.query_params["data"] = remember_source(str(data))
    views = {"images": "Images", "findings": None, "classes": "Classes and splits"}
    for name, view in views.items():
        app.session_state["dataset_view"] = view
        draw(part, app, f"page_{name}")


def measure_edits(part: Part, data: Path) -> None:
    """Relabel a tenth of the images, one page of images per change."""
    from finetune_core.config import Edit
    from finetune_core.data.dataset import assemble_dataset, index_data
    from finetune_core.data.edits import add_edits, load_edits, remove_edits, save_edits

    settings = make_config({"data": str(data)}).split_settings
    index = finish(index_data(data))
    assemble_dataset(data, index, **settings, edits=())
    changed = index.rows["id"].iloc[::SHARE_CHANGED].tolist()
    changes = [
        Edit(action="relabel", paths=changed[at : at + A_PAGE], to="class0")
        for at in range(0, len(changed), A_PAGE)
    ]
    with part.time_span("edits_kept"):
        save_edits(data, changes)
    with part.time_span("edits_read"):
        loaded = load_edits(data)
    with part.time_span("edits_applied"):
        assemble_dataset(data, index, **settings, edits=loaded)
    with part.time_span("edit_added"):
        add_edits(data, changes[:1])
    with part.time_span("edit_taken_back"):
        remove_edits(data, changes[:1])
    save_edits(data, ())


def measure_rows(part: Part, data: Path) -> None:
    """Write cached features of every image to disk, and read them in random order."""
    import torch

    from finetune_core.data.index import load_known_images
    from finetune_core.data.rowcache import RowCache

    os.environ["THAW_CACHE_MEMORY_GB"], os.environ["THAW_CACHE_DISK_GB"] = "0", "100"
    keys = load_known_images(data)["content"].to_numpy(np.uint64)
    keys = np.unique(keys)
    folder = Path(os.environ["THAW_HOME"], "rows")
    order = np.random.default_rng(0).permutation(len(keys))

    def batches() -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        for start in range(0, len(keys), BATCH):
            positions = np.arange(start, min(len(keys), start + BATCH))
            yield positions, torch.zeros((len(positions), VALUES), dtype=torch.bfloat16)

    def write_rows() -> None:
        finish(RowCache(lambda: folder).fill("features", keys, batches()))

    with part.time_span("rows_written"):
        write_rows()
    with part.time_span("rows_opened"):
        table = RowCache(lambda: folder).get_table("features")
    with part.time_span("rows_looked_up"):
        if table.find_missing(keys).any():
            raise RuntimeError("rows are missing")
        lookup = table.lookup(keys)
    with part.time_span("rows_read_at_random"):
        for start in range(0, len(keys), BATCH):
            lookup.batch(order[start : start + BATCH])


def write_runs(folder: Path, count: int, steps: int) -> None:
    """Write finished runs of 8 epochs and ``steps`` steps, a second apart."""
    from finetune_core.runs.record import EVENTS_FILE

    content = b"".join(
        json.dumps(event.to_json() | {"at": 1.7e9 + at}).encode() + b"\n"
        for at, event in enumerate(make_events(steps))
    )
    for number in range(count):
        minutes, second = divmod(number, 60)
        hours, minute = divmod(minutes, 60)
        day, hour = divmod(hours, 24)
        at = f"202601{day + 1:02}-{hour:02}{minute:02}{second:02}"
        run = folder / f"{at}-{BACKBONE}-{STRATEGY}-{number:08x}"
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


def make_events(steps: int) -> list["Event"]:
    """Return the events of one run."""
    from finetune_core.training.events import (
        CacheReport,
        Counts,
        EpochEnded,
        RunFinished,
        RunStarted,
        StageMeasure,
        StageRow,
        StepEnded,
    )

    each = -(-steps // EPOCHS)
    counts = Counts(train=each * RUN_BATCH, val=200, test=200)
    result: list[Event] = [
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
        images, seconds = (number + 1) * RUN_BATCH, 0.1 * (number + 1)
        result.append(
            StepEnded(
                epoch,
                step,
                1.2345,
                1.2345,
                0.75,
                1e-3,
                images,
                seconds,
                1.234567,
                RUN_BATCH,
                watched,
            )
        )
        if step == each:
            result.append(EpochEnded(epoch, 0.5, 0.9, 0.6, 0.8, 0.1 * each, 0.5, seconds))
    return [
        *result,
        RunFinished(EPOCHS, 1, 0.8, 0.6, 0.8, seconds + 10, evaluation_precision="fp32"),
    ]


def measure_listing(part: Part, folder: Path) -> None:
    """Read all runs twice."""
    from finetune_core.runs.store import RunStore

    store = RunStore(folder)
    for name in ("list", "list_again"):
        with part.time_span(name):
            runs, damaged = store.list_all()
        if damaged:
            raise RuntimeError(damaged[0].reason)
    part.found["runs"] = len(runs)


def measure_run_pages(part: Part, _: Path) -> None:
    """Draw the pages Runs and Train."""
    for name in ("runs", "train"):
        draw(part, open_app(f"pages/{name}.py"), f"page_{name}")


PARTS: dict[str, Callable[[Part, Path], None]] = {
    "index": measure_index,
    "split": measure_split,
    "page": measure_page,
    "edits": measure_edits,
    "rows": measure_rows,
}
RUN_PARTS: dict[str, Callable[[Part, Path], None]] = {
    "list": measure_listing,
    "pages": measure_run_pages,
}


def measure_part(name: str, data: Path, home: Path) -> Any:
    """Measure a part in a process of its own.

    Args:
        name: name of the part.
        data: folder that the part works on.
        home: folder of the app's own files.
    """
    command = [sys.executable, "-m", "benchmarks.scale", "--child", name, str(data)]
    environment = os.environ | {"THAW_HOME": str(home)}
    process = subprocess.run(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(process.stdout.splitlines()[-1])


def measure_images(count: int, parts: list[str], folder: Path) -> None:
    """Measure parts on generated images, and print the result."""
    write_images(data := folder / f"images-{count}", count)
    results = {name: measure_part(name, data, folder / f"home-{count}") for name in parts}
    print(json.dumps({"images": count, **results}), flush=True)


def measure_runs(count: int, steps: int) -> None:
    """Measure all parts on generated runs, and print the result."""
    with tempfile.TemporaryDirectory() as home:
        write_runs(data := Path(home, "runs"), count, steps)
        results = {name: measure_part(name, data, Path(home)) for name in RUN_PARTS}
    print(json.dumps({"runs": count, "steps": steps, **results}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[])
    parser.add_argument("--runs", type=int, nargs="+", default=[])
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=[*PARTS],
        help="of the benchmark of images; all but index need the index",
    )
    parser.add_argument(
        "--folder", type=Path, help="of the images and the app's own files; kept, where it is given"
    )
    parser.add_argument("--steps", type=int, default=160, help="of each run")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, data = options.child
        part = Part()
        (PARTS | RUN_PARTS)[name](part, Path(data))
        print(json.dumps(part.found))
        return
    if not options.images and not options.runs:
        parser.error("name numbers of images, or of runs")
    with tempfile.TemporaryDirectory() as temporary:
        for count in options.images:
            measure_images(count, options.parts, options.folder or Path(temporary))
    for count in options.runs:
        measure_runs(count, options.steps)


if __name__ == "__main__":
    main()
