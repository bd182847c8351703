"""What benchmarks of growth share: spans that are timed, pages that are drawn without a browser, each part in a process of its own."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamlit.testing.v1 import AppTest

ROOT = Path(__file__).resolve().parent.parent

Found = dict[str, Any]


def memory_mb() -> float:
    """The largest that this process has been."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (1e6 if sys.platform == "darwin" else 1e3)


class Part:
    """What a child measures: named spans of wall clock and processor time."""

    def __init__(self) -> None:
        self.found: Found = {"base_mb": round(memory_mb())}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.found[name] = {
            "wall_s": round(time.perf_counter() - wall, 3),
            "cpu_s": round(time.process_time() - cpu, 3),
            "peak_mb": round(memory_mb()),
        }


def app_at(page: str) -> "AppTest":
    """The app, without a browser, to be drawn at a page (``pages/runs.py``)."""
    from streamlit.testing.v1 import AppTest

    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=3600)
    app.switch_page(page)
    return app


def draw(part: Part, app: "AppTest", name: str) -> None:
    """Draw the page twice, the first time and again, and count what is sent to the browser."""
    from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
    from streamlit.testing.v1.local_script_runner import LocalScriptRunner

    sent = [0]
    messages = LocalScriptRunner.forward_msgs

    def counted(runner: LocalScriptRunner) -> list[ForwardMsg]:
        found = messages(runner)
        sent[0] = sum(message.ByteSize() for message in found)
        return found

    LocalScriptRunner.forward_msgs = counted  # type: ignore[assignment, method-assign]
    try:
        for span in (name, f"{name}_again"):
            with part.timed(span):
                app.run()
            if app.exception:
                raise RuntimeError(app.exception[0].message)
            part.found[span]["sent_kb"] = round(sent[0] / 1e3)
    finally:
        LocalScriptRunner.forward_msgs = messages  # type: ignore[method-assign]


def run_child(parts: Mapping[str, Callable[[Part, Path], None]], name: str, folder: Path) -> None:
    """What a child does: print what its part finds."""
    part = Part()
    parts[name](part, folder)
    print(json.dumps(part.found))


def measured(benchmark: str, name: str, folder: Path, home: Path) -> Found:
    """What a part of a benchmark finds in a process of its own.

    Args:
        folder: what it works on.
        home: of the app's own files.
    """
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", "--child", name, str(folder)]
    environment = os.environ | {"THAW_HOME": str(home)}
    done = subprocess.run(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found
