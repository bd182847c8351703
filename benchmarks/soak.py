"""Eight browser sessions that look on while three queued runs train: what they cost, what they see, and what they leave behind.

Each round queues three runs; every second round eight sessions of a browser on this machine, at the lowest priority, watch them,
each the run that it has chosen. It prints the time of an epoch with and without them, the server's memory, whether every
run is whole, and whether any session has ever shown another run than its own.

python -m benchmarks.soak        (needs Chromium)
"""

import argparse
import shutil
import statistics
import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import psutil
from filelock import FileLock
from playwright.sync_api import BrowserContext, Page, WebSocket, sync_playwright

from benchmarks.live_page import ARGUMENTS, app_running, epoch_seconds, run_shown
from finetune_core.runs.store import RunStore
from finetune_core.training.device import choose_device
from finetune_core.training.predictions import load_predictions

SESSIONS, RUNS, ROUNDS, EPOCHS = 8, 3, 2, 6


def queue_runs(page: Page, url: str, round_number: int) -> list[str]:
    """Three runs that differ in their seed, each queued from the page."""
    runs = []
    for seed in range(RUNS):
        page.goto(f"{url}/configure")
        page.get_by_role("button", name="Use the sample").click()
        page.get_by_text("Start training").wait_for()
        page.get_by_label("Image size (pixels)", exact=True).fill("64")
        page.get_by_label("Epochs", exact=True).fill(str(EPOCHS))
        page.get_by_label("Seed", exact=True).fill(str(10 * round_number + seed))
        page.get_by_label("Seed", exact=True).press("Enter")
        page.get_by_text("Full fine-tuning", exact=True).first.click()
        page.wait_for_timeout(3000)
        page.get_by_text("Start training").click()
        page.wait_for_url("**/train?run=*")
        runs.append(run_shown(page))
    return runs


def watch(
    context: BrowserContext, url: str, runs: list[str], asked: list[str]
) -> list[tuple[Page, str]]:
    """One page a session, all open; what they ask of the server is noted in ``asked``."""
    pages = []
    for session in range(SESSIONS):
        page, run = context.new_page(), runs[session % len(runs)]
        page.on("websocket", partial(note_frames, run=run, asked=asked))
        page.goto(f"{url}/train?run={run}")
        pages.append((page, run))
    return pages


def note_frames(socket: WebSocket, run: str, asked: list[str]) -> None:
    socket.on("framesent", lambda _: asked.append(run))


def strays(pages: list[tuple[Page, str]], runs: list[str]) -> int:
    """Sessions that show another run than the one they have chosen."""
    return sum(
        run not in page.url
        or any(page.get_by_text(other).count() for other in runs if other != run)
        for page, run in pages
    )


def all_ended(home: str, runs: list[str]) -> bool:
    store = RunStore(Path(home, "runs"))
    return not any(store.run(run).active for run in runs)


def humble_browser(folder: Path) -> str:
    """A way to start Chromium so that all its threads take only what is left over: the sessions stand for other machines."""
    script = folder / "chromium"
    script.write_text(f'#!/bin/sh\nexec chrt --idle 0 nice -n 19 {shutil.which("chromium")} "$@"\n')
    script.chmod(0o755)
    return str(script)


def lower_its_group() -> None:
    """Where Linux groups processes by session, each group has a niceness of its own."""
    for process in psutil.Process().children(recursive=True):
        group = Path(f"/proc/{process.pid}/autogroup")
        if "chrom" in process.name() and group.exists():
            group.write_text("19")


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    with (
        tempfile.TemporaryDirectory() as home,
        sync_playwright() as playwright,
        app_running(home) as (url, server),
    ):
        process = psutil.Process(server.pid)
        device = FileLock(Path(home, "locks", f"{choose_device('auto').kind}.lock"))
        Path(home, "locks").mkdir()
        times: dict[bool, list[float]] = {True: [], False: []}
        wrong = 0
        every: list[str] = []
        asked: list[str] = []
        memory: list[int] = []
        rates: list[float] = []
        for round_number in range(2 * ROUNDS):
            watched = round_number % 2 == 1
            browser = playwright.chromium.launch(
                executable_path=humble_browser(Path(home)), args=ARGUMENTS
            )
            lower_its_group()
            context = browser.new_context(viewport={"width": 1440, "height": 900})
            first = context.new_page()
            with device:  # the runs wait for us, while the sessions open
                runs = queue_runs(first, url, round_number)
                first.close()
                pages = watch(context, url, runs, asked) if watched else []
            asked.clear()
            began = time.monotonic()
            if not watched:
                browser.close()
            while not all_ended(home, runs):
                time.sleep(2)
                if watched:
                    pages[0][0].wait_for_timeout(1000)  # lets the browser's events through
                    wrong += strays(pages, runs)
            if watched:
                rates.append(len(asked) / (time.monotonic() - began))
                browser.close()
            times[watched] += [epoch_seconds(home, run) for run in runs]
            memory.append(process.memory_info().rss)
            every += runs
        store = RunStore(Path(home, "runs"))
        whole = sum(
            store.run(run).status == "finished"
            and len(load_predictions(store.run(run).run_dir)) > 0
            for run in every
        )
    together, alone = statistics.median(times[True]), statistics.median(times[False])
    growth = " ".join(f"{after / before - 1:+.1%}" for before, after in pairwise(memory))
    print(
        f"an epoch takes {together:.2f} s with {SESSIONS} sessions looking on, {alone:.2f} s alone: {together / alone - 1:+.1%}"
    )
    print(
        f"the server's memory from round to round: {growth}, {memory[-1] / 1e9:.2f} GB at the end"
    )
    print(
        f"the sessions asked the server {statistics.mean(rates):.1f} times a second, those of runs that had ended no more"
    )
    print(
        f"whole runs: {whole} of {len(every)}; looks at a session that showed another run than its own: {wrong}"
    )


if __name__ == "__main__":
    main()
