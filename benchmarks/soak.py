"""Eight concurrent browser sessions on five pages of the app while runs train.

    python -m benchmarks.soak --minutes 10

Needs Chromium. Prints the actions of each session, the growth of the server's memory, and every
problem: a traceback in the server's log, an exception or error on a page, a failed or damaged run,
an abandoned visit, a session without actions. With a problem the exit status is 1.
"""

import argparse
import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import cycle
from pathlib import Path
from random import Random
from typing import IO, Any

import psutil
from playwright.async_api import Browser, BrowserContext, async_playwright
from playwright.async_api import Error as BrowserError

from benchmarks.soak_sessions import BACKBONES, MINUTE, SESSIONS, SIZE, Session, make_data
from finetune_core import paths
from finetune_core.config import make_config
from finetune_core.data.recent import remember_source
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.store import RunStore

ROOT = Path(__file__).resolve().parent.parent
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
PATIENCE = 4 * MINUTE
WATCH_BOXES = """
const seen = new WeakSet();
new MutationObserver(() => {
    const boxes = '[data-testid=stException], [data-testid=stAlertContentError]';
    for (const box of document.querySelectorAll(boxes)) {
        if (seen.has(box)) continue;
        seen.add(box);
        setTimeout(() => window.boxSeen(box.dataset.testid, box.innerText), 200);
    }
}).observe(document, {childList: true, subtree: true});
"""
TRACEBACK = re.compile(
    r"^.*Traceback \(most recent call last\).*\n(?:^(?:[ \t│].*)?\n)*(?:^\S.*\n?)?", re.MULTILINE
)


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_up(url: str) -> None:
    """Wait until the app answers.

    Raises:
        TimeoutError: if it does not answer within a minute.
    """
    for _ in range(200):
        try:
            urllib.request.urlopen(f"{url}/_stcore/health", timeout=2)
            return
        except OSError:
            time.sleep(0.3)
    raise TimeoutError(url)


@contextmanager
def app_running(home: str | Path, log: IO[Any]) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run the app on a free port with its own home. Yield its address and its process."""
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


def train_first(data: Path) -> None:
    """Train a run of each backbone, so that the sessions have runs to show."""
    for backbone in BACKBONES:
        own = backbone == BACKBONES[0]
        changes = {
            "weights": "pretrained" if own else "none",
            "strategy": "last_block" if own else "full",
        }
        shared = {"data": str(data), "image_size": SIZE, "epochs": 2, "learning_rate": 1e-3}
        for _ in execute(
            create_run(make_config(shared | changes | {"backbone": backbone}), paths.runs_dir())
        ):
            pass


async def open_session(
    context: BrowserContext, name: str, url: str, data: str, seed: int
) -> Session:
    """Open a browser window of a session."""
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


async def make_visits(session: Session, pictures: Path | None) -> None:
    """Make visits one after the other, without end.

    Args:
        session: the session.
        pictures: directory for a screenshot of each abandoned visit. None keeps none.
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
    """Record every second whether a run is training."""
    store = RunStore(paths.runs_dir())
    while True:
        looks.append(any(run.status == "running" for run in store.list_runs()))
        await asyncio.sleep(1)


async def soak(
    browser: Browser, url: str, data: str, options: argparse.Namespace
) -> tuple[list[Session], list[bool]]:
    """Let all sessions work until the time is over.

    Returns:
        The sessions, and for each second whether a run was training.
    """
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
                *(make_visits(session, options.pictures) for session in sessions),
                watch_training(looks),
            )
    return sessions, looks


def report_problems(sessions: list[Session], log: str) -> list[str]:
    """Print the actions of each session, and return the problems."""
    wrong = [f"server's log: {found.strip()}" for found in TRACEBACK.findall(log)]
    for session in sessions:
        done = ", ".join(f"{name} {times}" for name, times in sorted(session.done.items()))
        print(f"{session.name}: {session.done.total()} actions ({done})")
        wrong += [f"{session.name}: {problem}" for problem in session.problems]
        if not session.done:
            wrong.append(f"{session.name}: nothing was done")
    runs, damaged = RunStore(paths.runs_dir()).list_all()
    print(
        f"runs: {len(runs)}, of which {sum(run.status == 'finished' for run in runs)} have finished"
    )
    ends = [(run, run.history.end) for run in runs if run.status == "failed"]
    wrong += [f"run {run.run_id} failed: {end['message']}" for run, end in ends if end]
    return wrong + [f"run {one.run_id} is damaged: {one.reason}" for one in damaged]


async def main() -> int:
    """Run the benchmark and return the exit status."""
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
        data = make_data(Random(options.seed))
        train_first(data)
        with Path(home, "server.log").open("w+") as log:
            with app_running(home, log) as (url, server):
                async with async_playwright() as playwright:
                    browser = await playwright.chromium.launch(
                        executable_path=shutil.which("chromium"), args=ARGUMENTS
                    )
                    process = psutil.Process(server.pid)
                    before = process.memory_info().rss
                    sessions, looks = await soak(browser, url, remember_source(data), options)
                    after = process.memory_info().rss if server.poll() is None else 0
                    await browser.close()
                ended = server.poll()
            log.seek(0)
            problems = report_problems(sessions, log.read())
    problems += [f"the server ended by itself, with status {ended}"] if ended is not None else []
    print(
        f"{options.minutes:g} minutes; a run was training in {sum(looks) / len(looks):.0%} of the "
        f"time; the server's memory grew from {before / 1e9:.2f} to {after / 1e9:.2f} GB"
    )
    print(
        "\n".join([f"{len(problems)} problems:", *problems])
        if problems
        else "no exception, no error, nothing given up"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
