"""What an open Train page costs: the same run in the app with its page open in a browser on this machine, and closed.

python -m benchmarks.live_page        (needs Chromium)
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
ROUNDS, EPOCHS = 3, 5
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_up(url: str) -> None:
    for _ in range(200):
        try:
            urllib.request.urlopen(f"{url}/_stcore/health", timeout=2)
            return
        except OSError:
            time.sleep(0.3)
    raise TimeoutError(url)


@contextmanager
def app_running(
    home: str | Path, log: int | IO[Any] = subprocess.DEVNULL
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The app on a port of its own, with a folder of its own: its address, and its process."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "streamlit",
        "run",
        "app.py",
        "--server.headless=true",
        f"--server.port={port}",
    ]
    server = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"THAW_HOME": str(home)},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_up(url)
        yield url, server
    finally:
        server.terminate()
        server.wait()


def start_run(page: Page, url: str) -> str:
    page.goto(f"{url}/configure")
    page.get_by_role("button", name="Use the sample").click()
    page.get_by_text("Start training").wait_for()
    page.get_by_label("Image size (pixels)", exact=True).fill("96")
    page.get_by_label("Epochs", exact=True).fill(str(EPOCHS))
    page.get_by_label("Epochs", exact=True).press("Enter")
    page.get_by_text("Full fine-tuning", exact=True).first.click()
    page.wait_for_timeout(1500)
    page.get_by_text("Start training").click()
    page.wait_for_url("**/train?run=*")
    return run_shown(page)


def run_shown(page: Page) -> str:
    """The run that a page's address names."""
    return parse_qs(urlsplit(page.url).query)["run"][0]


def epoch_seconds(home: str, run: str) -> float:
    """The median epoch once the run has ended, the first left out."""
    events = Path(home, "runs", run, "events.jsonl")
    while '"RunFinished"' not in events.read_text():
        time.sleep(1)
    rows = [json.loads(line) for line in events.read_text().splitlines()]
    seconds: list[float] = [row["train_seconds"] for row in rows if row["event"] == "EpochEnded"]
    return statistics.median(seconds[1:])


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    times: dict[bool, list[float]] = {True: [], False: []}
    with (
        tempfile.TemporaryDirectory() as home,
        sync_playwright() as playwright,
        app_running(home) as (url, _),
    ):
        for number in range(2 * ROUNDS):
            stays = number % 2 == 0
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=ARGUMENTS
            )
            run = start_run(browser.new_page(viewport={"width": 1440, "height": 900}), url)
            if not stays:
                browser.close()
            times[stays].append(epoch_seconds(home, run))
            if stays:
                browser.close()
    opened, closed = statistics.median(times[True]), statistics.median(times[False])
    print(
        f"an epoch takes {opened:.2f} s with the page open, {closed:.2f} s with it closed: {opened / closed - 1:.1%} more"
    )


if __name__ == "__main__":
    main()
