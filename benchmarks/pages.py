"""Loading time, layout shift and amount of content of each page.

    python -m benchmarks.pages --runs 50 --images 10000

Needs Chromium. Starts the app in a directory of its own with generated runs and images, opens Home
on the cold server, then visits every page by its link. Prints seconds until a page is drawn, the
cumulative layout shift of a visit, and height, words and controls of each page at 1440 and 390
pixels, with everything folded. A group of radio buttons or segments counts as one control.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.scale import write_images, write_runs
from benchmarks.soak import ARGUMENTS, app_running
from finetune_core import paths
from finetune_core.data.recent import remember_source
from tests.chromium import CHROMIUM, SETTLED

NAMES = ("Dataset", "Configure", "Train", "Runs", "Evaluate", "Compare", "Predict", "Home")
STEPS = 16  # of a generated run
WIDTHS = (1440, 390)
PATIENCE = 120_000  # milliseconds
WATCH = """
window.shift = 0; window.changed = performance.now();
new PerformanceObserver(list => {
    for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shift += entry.value;
}).observe({type: "layout-shift", buffered: true});
new MutationObserver(() => { window.changed = performance.now() })
    .observe(document, {childList: true, subtree: true, attributes: true, characterData: true});
"""
PAINTED = """() => performance.getEntriesByType("paint")
    .find(entry => entry.name === "first-contentful-paint")?.startTime"""
CONTENT = """() => {
    const main = document.querySelector("[data-testid=stMain]")
    const hosts = [...main.querySelectorAll("*")].filter(element => element.shadowRoot)
    const roots = [main, ...hosts.map(element => element.shadowRoot)]
    const all = selector => roots.flatMap(root => [...root.querySelectorAll(selector)])
        .filter(element => element.checkVisibility({visibilityProperty: true}))
    const aside = "[data-testid=stTooltipIcon], [data-testid=stElementToolbar], \
.st-key-navigation, "
        + "[role=radiogroup], [data-testid=stDataFrame]"
    const single = all("button, input, textarea, select, summary")
        .filter(element => !element.closest(aside) && element.type !== "radio")
    const groups = all("[role=radiogroup]")
    const words = main.innerText.split(/\\s+/).filter(Boolean).length
    return {pixels: main.scrollHeight, words, controls: single.length + groups.length}
}"""


def wait_until_settled(page: Page) -> float:
    """Wait until a page has been drawn and no longer changes.

    Returns:
        The time of the last change, in milliseconds of the page's clock.
    """
    page.locator(SETTLED).wait_for()
    page.wait_for_function("performance.now() - window.changed > 1000")
    return float(page.evaluate("window.changed"))


def visit_pages(page: Page) -> dict[str, list[float]]:
    """Visit each page by its link.

    Returns:
        Page -> seconds until it is drawn, and layout shift.
    """
    visits = {}
    for name in NAMES:
        page.evaluate("window.shift = 0")
        start_time = float(page.evaluate("performance.now()"))
        page.get_by_role("link", name=name, exact=True).click()
        page.get_by_role("heading", name="Thaw" if name == "Home" else name, level=1).wait_for()
        page.locator(SETTLED).wait_for()
        seconds = (float(page.evaluate("performance.now()")) - start_time) / 1000
        wait_until_settled(page)
        visits[name] = [seconds, float(page.evaluate("window.shift"))]
    return visits


def open_cold(browser: Browser, url: str) -> tuple[Page, float, float]:
    """Open Home on a cold server.

    Returns:
        The page, and the seconds to its first paint and to its last change.
    """
    page = browser.new_page(viewport={"width": WIDTHS[0], "height": 900})
    page.set_default_timeout(PATIENCE)
    page.add_init_script(WATCH)
    page.goto(url)
    page.get_by_role("heading", name="Thaw", level=1).wait_for()
    complete = wait_until_settled(page) / 1000
    return page, float(page.evaluate(PAINTED)) / 1000, complete


def count_content(browser: Browser, url: str, data: str) -> dict[str, list[dict[str, Any]]]:
    """Return height, words and controls by page, one entry for each of ``WIDTHS``."""
    content: dict[str, list[dict[str, Any]]] = {}
    for width in WIDTHS:
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.set_default_timeout(PATIENCE)
        page.add_init_script(WATCH)
        for name in NAMES:
            path = "" if name == "Home" else name.lower()
            page.goto(f"{url}/{path}?data={data}")
            wait_until_settled(page)
            content.setdefault(name, []).append(page.evaluate(CONTENT))
        page.close()
    return content


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3, help="visits of each page")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        data, home = Path(folder, "images"), Path(folder, "home")
        os.environ |= {"THAW_HOME": str(home), "THAW_DATA_ROOTS": str(data)}
        write_images(data, args.images)
        write_runs(paths.runs_dir(), args.runs, STEPS)
        data_id = remember_source(str(data))
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        with (
            open(home / "server.log", "wb") as log,
            app_running(home, log) as (url, _),
        ):
            measure(browser, url, data_id, args.rounds)
        browser.close()


def measure(browser: Browser, url: str, data: str, rounds: int) -> None:
    """Measure the app at an address, and print tables."""
    page, painted, complete = open_cold(browser, url)
    print(f"cold server: first paint {painted:.1f} s, Home complete {complete:.1f} s")
    page.goto(f"{url}/dataset?data={data}")
    wait_until_settled(page)
    visits = [visit_pages(page) for _ in range(rounds)]
    page.close()
    content = count_content(browser, url, data)
    print("\n| page | seconds | worst | layout shift | pixels | words | controls |")
    print("|---|---|---|---|---|---|---|")
    for name in NAMES:
        seconds = [visit[name][0] for visit in visits]
        shift = max(visit[name][1] for visit in visits)
        sizes = [
            " / ".join(str(one[kind]) for one in content[name])
            for kind in ("pixels", "words", "controls")
        ]
        print(
            f"| {name} | {median(seconds):.1f} | {max(seconds):.1f} | {shift:.3f} "
            f"| {' | '.join(sizes)} |"
        )


if __name__ == "__main__":
    began = time.monotonic()
    main()
    print(f"\n{time.monotonic() - began:.0f} s")
