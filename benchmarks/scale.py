"""How the cost of knowing a data set grows with its images: each part in a process of its own, on 10⁴, 10⁵, … generated images.

Prints one JSON object per number of images: for each part its seconds of wall clock (``wall_s``) and of processor time (``cpu_s``), and
the process's largest memory before and after it (``base_mb``, ``peak_mb``).

python -m benchmarks.scale [--images 10000 100000] [--parts index …] [--folder FOLDER]
"""

import argparse
import json
import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.parts import Part, app_at, draw, measured, run_child
from finetune_core.config import make_config
from finetune_core.work import finish

CLASSES, SMALLEST, LARGEST = 10, 28, 40  # pixels
COARSE, NOISE = 5, 12  # colours a side, which are blended; gray levels
BLOCK = 1000  # images of one size: among them an exact copy, and one that is darker
VALUES, BATCH = 512, 1024  # of a cached row; rows that are read at once
SHARE_CHANGED, A_PAGE = 10, 24  # every tenth image; images
READY = ".ready"


def write_images(folder: Path, count: int) -> None:
    """PNGs of 28 to 40 pixels in ten classes, each a mixture of its class's colours and of its own; done once in a folder."""
    if (folder / READY).exists():
        return
    random = np.random.default_rng(0)
    of_class = random.integers(0, 256, (CLASSES, COARSE, COARSE, 3)).astype(np.float32)
    for name in range(CLASSES):
        (folder / f"class{name}").mkdir(parents=True, exist_ok=True)
    for start in range(0, count, BLOCK):
        images = new_images(random, of_class[np.arange(BLOCK) % CLASSES])
        images[BLOCK // 4] = images[BLOCK // 4 - CLASSES]
        images[BLOCK // 2] = (images[BLOCK // 2 - CLASSES] * 0.85).astype(np.uint8)
        for number, pixels in enumerate(images[: count - start], start):
            Path(folder, f"class{number % CLASSES}", f"{number:08d}.png").write_bytes(png(pixels))
    (folder / READY).touch()


def new_images(random: np.random.Generator, of_class: np.ndarray) -> np.ndarray:
    """uint8 ``[n, side, side, 3]``, all of one size, of coarse colours ``[n, COARSE, COARSE, 3]``."""
    side = int(random.integers(SMALLEST, LARGEST + 1))
    at = np.arange(COARSE)
    bilinear = np.maximum(0, 1 - np.abs(np.linspace(0, COARSE - 1, side)[:, None] - at)).astype(
        np.float32
    )
    coarse = 0.4 * of_class + 0.6 * random.integers(0, 256, of_class.shape).astype(np.float32)
    smooth = np.einsum("yi,nijc,xj->nyxc", bilinear, coarse, bilinear, optimize=True)
    smooth += random.integers(-NOISE, NOISE + 1, smooth.shape, np.int8)
    pixels: np.ndarray = smooth.clip(0, 255).astype(np.uint8)
    return pixels


def png(pixels: np.ndarray) -> bytes:
    """An RGB image as a file: Pillow takes ten times as long to save so small a one."""
    height, width, _ = pixels.shape
    # each begins with its filter
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


def index(part: Part, data: Path) -> None:
    """Look at every file, compare the images, keep the index."""
    from finetune_core.data.dataset import look_through

    with part.timed("index"):
        finish(look_through(data))


def look(part: Part, data: Path) -> None:
    """The share of the index that lists files, and that looks at them: without comparing, keeping nothing."""
    from finetune_core.data.image_stats import look_at
    from finetune_core.data.listing import list_data
    from finetune_core.data.threads import applied

    with part.timed("list"):
        listing = list_data(data)
    with part.timed("look"):
        for _ in applied(look_at, (listing.root / sample for sample in listing.files["id"])):
            pass


def split(part: Part, data: Path) -> None:
    """Open the index that is there, then split and check: the first time, and as after each change."""
    from finetune_core.data.checks import class_findings, copy_findings, image_findings
    from finetune_core.data.dataset import assemble, look_through

    settings = make_config({"data": str(data)}).split_settings
    with part.timed("open_again"):
        seen = finish(look_through(data))
    with part.timed("split_and_check"):
        dataset = assemble(data, seen, **settings, edits=())
    with part.timed("split_and_check_again"):
        assemble(data, seen, **settings, edits=())
    with part.timed("check"):
        found = [
            *copy_findings(dataset.table),
            *class_findings(dataset.table, dataset.classes),
            *image_findings(dataset.table),
        ]
    with part.timed("fingerprint"):
        part.found["split"] = dataset.split_counts
        part.found["fingerprint_is"] = dataset.fingerprint
    part.found["findings"] = {one.kind: one.count for one in found}


def page(part: Part, data: Path) -> None:
    """The Dataset page itself, without a browser: opened, then drawn again with a page of images, a filter, and the findings."""
    from finetune_core.data.recent import remember

    os.environ["THAW_DATA_ROOTS"] = str(data.parent)
    app = app_at("pages/dataset.py")
    app.query_params["data"] = remember(str(data))
    for view in ("Images", "Findings", "Classes and splits"):
        app.session_state["dataset_view"] = view
        draw(part, app, f"page_{view.split()[0].lower()}")


def edits(part: Part, data: Path) -> None:
    """A tenth of the images relabelled, in changes of a page of images each: kept, read, applied, one more made and taken back."""
    from finetune_core.config import Edit
    from finetune_core.data.dataset import assemble, look_through
    from finetune_core.data.edits import add_edits, load_edits, remove_edits, save_edits

    settings = make_config({"data": str(data)}).split_settings
    seen = finish(look_through(data))
    assemble(data, seen, **settings, edits=())
    changed = seen.rows["id"].iloc[::SHARE_CHANGED].tolist()
    made = [
        Edit(action="relabel", paths=changed[at : at + A_PAGE], to="class0")
        for at in range(0, len(changed), A_PAGE)
    ]
    with part.timed("edits_kept"):
        save_edits(data, made)
    with part.timed("edits_read"):
        known = load_edits(data)
    with part.timed("edits_applied"):
        assemble(data, seen, **settings, edits=known)
    with part.timed("edit_added"):
        add_edits(data, made[:1])
    with part.timed("edit_taken_back"):
        remove_edits(data, made[:1])
    save_edits(data, ())


def rows(part: Part, data: Path) -> None:
    """Cached features of every image, written to the disk, read back in order and in a random order, and found by another process."""
    import torch

    from finetune_core.data.index import known_images
    from finetune_core.data.rowcache import RowCache

    os.environ["THAW_CACHE_MEMORY_GB"], os.environ["THAW_CACHE_DISK_GB"] = "0", "100"
    keys = known_images(data)["content"].to_numpy(np.uint64)
    keys = np.unique(keys)
    folder = Path(os.environ["THAW_HOME"], "rows")
    order = np.random.default_rng(0).permutation(len(keys))

    def batches() -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        for start in range(0, len(keys), BATCH):
            positions = np.arange(start, min(len(keys), start + BATCH))
            yield positions, torch.zeros((len(positions), VALUES), dtype=torch.bfloat16)

    def written() -> None:
        finish(RowCache(lambda: folder).fill("features", keys, batches()))

    with part.timed("rows_written"):
        written()
    with part.timed("rows_opened"):
        table = RowCache(lambda: folder).table("features")
    with part.timed("rows_looked_up"):
        if table.missing(keys).any():
            raise RuntimeError("rows are missing")
        lookup = table.lookup(keys)
    with part.timed("rows_read_at_random"):
        for start in range(0, len(keys), BATCH):
            lookup.batch(order[start : start + BATCH])


PARTS: dict[str, Callable[[Part, Path], None]] = {
    "look": look,
    "index": index,
    "split": split,
    "page": page,
    "edits": edits,
    "rows": rows,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=[*PARTS],
        help="all but index and look need the index",
    )
    parser.add_argument(
        "--folder", type=Path, help="of the images and the app's own files; kept, where it is given"
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_child(PARTS, options.child[0], Path(options.child[1]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        for count in options.images:
            write_images(data := folder / f"images-{count}", count)
            parts = {
                name: measured("scale", name, data, folder / f"home-{count}")
                for name in options.parts
            }
            print(json.dumps({"images": count, **parts}), flush=True)


if __name__ == "__main__":
    main()
