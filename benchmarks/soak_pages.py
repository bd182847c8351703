"""Eight browser sessions that work at once, on Predict, Compare, Evaluate, Dataset and Configure, while runs train.

It reports what each session has done, every traceback in the server's log, every exception and every error that a page has shown,
every run that failed, and every visit that did not come to its end. Any of them makes the exit status 1, and so does a session that
has done nothing.

python -m benchmarks.soak_pages --minutes 10        (needs Chromium)
"""

import argparse
import asyncio
import os
import re
import shutil
import sys
import tempfile
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from random import Random

from playwright.async_api import Browser, BrowserContext, async_playwright
from playwright.async_api import Error as BrowserError

from benchmarks.live_page import ARGUMENTS, app_running
from benchmarks.soak_sessions import BACKBONES, MINUTE, SESSIONS, SIZE, Session, new_data
from finetune_core import paths
from finetune_core.config import make_config
from finetune_core.data.recent import remember
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.store import RunStore

PATIENCE = 4 * MINUTE
WATCH_BOXES = """
const seen = new WeakSet();
new MutationObserver(() => {
    for (const box of document.querySelectorAll('[data-testid=stException], [data-testid=stAlertContentError]')) {
        if (seen.has(box)) continue;
        seen.add(box);
        setTimeout(() => window.boxSeen(box.dataset.testid, box.innerText), 200);
    }
}).observe(document, {childList: true, subtree: true});
"""
TRACEBACK = re.compile(
    r"^.*Traceback \(most recent call last\).*\n(?:^(?:[ \t│].*)?\n)*(?:^\S.*\n?)?", re.MULTILINE
)


def train_first(data: Path) -> None:
    """A run of each backbone, so that the sessions have something to look at."""
    for backbone in BACKBONES:
        own = backbone == BACKBONES[0]
        given = {
            "weights": "pretrained" if own else "none",
            "strategy": "last_block" if own else "full",
        }
        usual = {"data": str(data), "image_size": SIZE, "epochs": 2, "learning_rate": 1e-3}
        for _ in execute(
            create_run(make_config(usual | given | {"backbone": backbone}), paths.runs_dir())
        ):
            pass


async def open_session(
    context: BrowserContext, name: str, url: str, data: str, seed: int
) -> Session:
    page = await context.new_page()
    page.set_default_timeout(PATIENCE)
    session = Session(
        name, SESSIONS[name], page, url, RunStore(paths.runs_dir()), data, Random(f"{seed} {name}")
    )
    await page.expose_function(
        "boxSeen", lambda kind, text: session.problems.append(f"{kind}: {text}")
    )
    await page.add_init_script(WATCH_BOXES)
    return session


async def work(session: Session, pictures: Path | None) -> None:
    """One visit after the other.

    Args:
        pictures: where to keep what the window shows when a visit is given up.
    """
    for visit in cycle(session.visits):
        try:
            await visit(session)
        except BrowserError as error:
            session.problems.append(
                f"{visit.__name__} on {session.page.url} was given up: {error.message}"
            )
            if pictures:
                name = f"{session.name}, {len(session.problems)}.png"
                await session.page.screenshot(path=pictures / name, full_page=True)


async def watch_training(looks: list[bool]) -> None:
    """Notes every second whether a run is training."""
    store = RunStore(paths.runs_dir())
    while True:
        looks.append(any(run.status == "running" for run in store.runs()))
        await asyncio.sleep(1)


async def soak(
    browser: Browser, url: str, data: str, options: argparse.Namespace
) -> tuple[list[Session], list[bool]]:
    """All sessions at once; what they are at when the time is over is broken off. Returns them, and whether a run was training."""
    contexts = [
        await browser.new_context(viewport={"width": 1280, "height": 900}) for _ in SESSIONS
    ]
    sessions = [
        await open_session(*one, url, data, options.seed)
        for one in zip(contexts, SESSIONS, strict=True)
    ]
    looks: list[bool] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(60 * options.minutes):
            await asyncio.gather(
                *(work(session, options.pictures) for session in sessions), watch_training(looks)
            )
    return sessions, looks


def summary(sessions: list[Session], log: str) -> list[str]:
    """Prints what was done; returns what was wrong."""
    wrong = [f"server's log: {found.strip()}" for found in TRACEBACK.findall(log)]
    for session in sessions:
        done = ", ".join(f"{name} {times}" for name, times in sorted(session.done.items()))
        print(f"{session.name}: {session.done.total()} actions ({done})")
        wrong += [f"{session.name}: {problem}" for problem in session.problems]
        if not session.done:
            wrong.append(f"{session.name}: nothing was done")
    runs, damaged = RunStore(paths.runs_dir()).all()
    print(
        f"runs: {len(runs)}, of which {sum(run.status == 'finished' for run in runs)} have finished"
    )
    ends = [(run, run.history.end) for run in runs if run.status == "failed"]
    wrong += [f"run {run.run_id} failed: {end['message']}" for run, end in ends if end]
    return wrong + [f"run {one.run_id} is damaged: {one.reason}" for one in damaged]


async def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--pictures", type=Path, help="a folder, for what windows showed when a visit was given up"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["THAW_HOME"] = home
        data = new_data(Random(options.seed))
        train_first(data)
        with Path(home, "server.log").open("w+") as log:
            with app_running(home, log) as (url, server):
                async with async_playwright() as playwright:
                    browser = await playwright.chromium.launch(
                        executable_path=shutil.which("chromium"), args=ARGUMENTS
                    )
                    sessions, looks = await soak(browser, url, remember(data), options)
                    await browser.close()
                ended = server.poll()
            log.seek(0)
            wrong = summary(sessions, log.read())
    wrong += [f"the server ended by itself, with status {ended}"] if ended is not None else []
    print(
        f"{options.minutes:g} minutes; a run was training in {sum(looks) / len(looks):.0%} of the time"
    )
    print(
        "\n".join([f"{len(wrong)} problems:", *wrong])
        if wrong
        else "no exception, no error, nothing given up"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
