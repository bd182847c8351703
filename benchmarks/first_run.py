"""Waiting time of a newcomer from *Try it now* to the verdict on Home.

    python -m benchmarks.first_run

Needs Chromium. Each round starts a server in a directory of its own, waits until Home is drawn and
the time was estimated, presses the button, and waits for the example images and the verdict.
"""

import argparse
import re
import tempfile
import time
from pathlib import Path
from statistics import median

from playwright.sync_api import Browser, sync_playwright

from benchmarks.soak import ARGUMENTS, app_running
from tests.chromium import CHROMIUM

PATIENCE = 300_000  # milliseconds


def press_once(browser: Browser, folder: Path) -> tuple[float, float, str]:
    """Return the seconds from the press to the images and to the verdict, and the verdict."""
    with open(folder / "server.log", "wb") as log, app_running(folder, log) as (url, _):
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(PATIENCE)
        page.goto(url)
        page.get_by_text(re.compile(r"About .+ here\.")).wait_for()
        start_time = time.monotonic()
        page.get_by_role("button", name="Try it now").click()
        page.get_by_alt_text("Handwritten digit 0").first.wait_for()
        images = time.monotonic() - start_time
        answer = page.get_by_role("heading", name="training the last block")
        answer.wait_for()
        seconds = time.monotonic() - start_time
        text = answer.inner_text()
        page.close()
    return images, seconds, text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    results = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for number in range(args.rounds):
            with tempfile.TemporaryDirectory() as folder:
                images, seconds, answer = press_once(browser, Path(folder))
            results.append((images, seconds))
            print(f"round {number + 1}: images {images:.1f} s, verdict {seconds:.1f} s: {answer}")
        browser.close()
    images, seconds = (median(column) for column in zip(*results, strict=True))
    print(f"median: images {images:.1f} s, verdict {seconds:.1f} s")


if __name__ == "__main__":
    main()
