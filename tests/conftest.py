"""Fixtures for all tests: a separate home folder, and image folders with a colour per class."""

import functools
import gc
import http.server
import os
import sys
import threading
import weakref
from types import SimpleNamespace

if "PYTEST_XDIST_WORKER" in os.environ:
    # Tests run in parallel. Threads of one test would wait, spinning, for a core that another test
    # uses. Set before numpy and torch are imported, which read the variable once, and inherited by
    # the processes that tests start.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import pytest

from finetune_core.data.rowcache import CACHE
from tests import factories
from tests.chromium import ARGUMENTS, CHROMIUM, FAKE_CAMERA
from tests.forked import forkserver

LONG = ("browser", "ray", "processes", "fuzz", "train", "packaging", "exhaustive")


def pytest_xdist_auto_num_workers():
    """Return the number of cores that the tests may use, which may be less than all cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark tests that need a browser, and put files with long tests first.

    Long tests then start early, and workers finish together. Runs before ``-m`` selects tests.
    """
    for item in items:
        if "browser" in item.fixturenames:
            item.add_marker("browser")
    first = {item.path for item in items if any(map(item.get_closest_marker, LONG))}
    items.sort(key=lambda item: item.path not in first)


def pytest_collection_finish():
    """Exclude the imported objects, a million, from garbage collection.

    Streamlit and statsmodels collect garbage on every call.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def restore_main():
    """Restore ``__main__`` after Streamlit's test harness has replaced it by a page.

    Otherwise processes started by a later test would run the page.
    """
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main


@pytest.fixture(scope="session")
def cached_component_manifests():
    """Cache the metadata of installed packages.

    Streamlit's test harness reads all of it for each app, which takes longer than most pages.
    """
    from streamlit.components.v2 import manifest_scanner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            manifest_scanner,
            "scan_component_manifests",
            functools.cache(manifest_scanner.scan_component_manifests),
        )
        yield


@pytest.fixture(autouse=True, scope="session")
def home_of_shared_fixtures(tmp_path_factory):
    """Provide a home for file-wide fixtures, and a folder shared by all test processes."""
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THAW_HOME", str(tmp_path_factory.mktemp("shared-home")))
        factories.Shared.folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
        yield


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    """Keep the files of tests out of the project's own runs and data."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("THAW_HOME", str(folder))
    CACHE.clear()
    if memo := sys.modules.get("finetune_core.training.heads.probe_memo"):
        memo.clear()
    if streamlit := sys.modules.get("streamlit"):
        # Pages of an earlier test would belong to another home.
        streamlit.cache_resource.clear()
    return folder


@pytest.fixture
def image_folder():
    return factories.image_folder


@pytest.fixture(scope="session")
def image_folder_once():
    return factories.image_folder


@pytest.fixture(scope="module")
def native_bf16():
    """Pretend that the CPU computes in bf16. With emulation, only the time differs."""
    import torch

    capabilities = torch.cpu.get_capabilities() | {"avx512_bf16": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
        yield


@pytest.fixture
def fake_compiler(monkeypatch):
    """Compile forward passes regardless of the cost, in a process that does nothing.

    The process is ready once ``result`` is set. The fixture's attributes are ``started`` and
    ``closed`` processes; ``used``, the number of compiled passes; ``module``, the module to
    compile, which runs instead and whose output is multiplied by ``factor``.
    """
    from finetune_core.training.compile import compiler as compiled
    from finetune_core.training.devices.speed_book import Compilation, SpeedBook

    class Process:
        result, elapsed, started, closed, used, module, factor = None, 1e-9, 0, 0, 0, None, 1

        def __init__(self, module, example, device):
            Process.started += 1
            Process.module = module

        def poll(self):
            return Process.result

        def close(self):
            Process.closed += 1

    def run(inputs):
        Process.used += 1
        return Process.module(inputs) * Process.factor

    monkeypatch.setattr(compiled, "CompilerProcess", Process)
    monkeypatch.setattr(compiled, "load_package", lambda content: run)
    monkeypatch.setattr(compiled, "find_compiler", lambda: "/usr/bin/g++")
    SpeedBook().learn_compilation("another part", Compilation(seconds=1e-9, saved=0.5))
    return Process


@pytest.fixture(scope="session")
def trained_runs(home_of_shared_fixtures):
    """Provide two runs of the packaged network; see ``tests/trained.py``."""
    # The module imports torch, which many tests do without.
    from tests.trained import train_once

    return train_once()


@pytest.fixture(scope="module")
def file_server(tmp_path_factory):
    """Serve a folder by a local server, and yield (folder, address)."""
    folder = tmp_path_factory.mktemp("file_server")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(folder), **kwargs)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("no Chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*ARGUMENTS, *FAKE_CAMERA]
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def processes():
    """Provide processes that start with the large libraries loaded, but without torch's threads.

    Where that is not possible, processes import the libraries themselves.
    """
    return forkserver()


@pytest.fixture
def hold_device(home):
    """Yield a function that uses a kind of device, as another program would.

    The function returns (its turn, the line to it). Anything sent down the line ends the use. Locks
    separate their owners, even within a process.
    """
    # The module imports torch, which many tests do without.
    from finetune_core.training.devices.turn import Turn

    turns = []

    def hold(kind):
        turn = Turn(kind)
        assert turn.acquire()
        turns.append(turn)
        return turn, SimpleNamespace(send=lambda word: turn.release())

    yield hold
    for turn in turns:
        turn.release()


@pytest.fixture
def gpu(monkeypatch):
    """Put the CPU in a GPU's place, and record (kind of device, weak reference) of every move."""
    import torch

    from finetune_core.randomness import make_generator
    from finetune_core.training.devices import device
    from finetune_core.training.step import compute

    moved, hold = [], device.Device.move_module

    def noted(self, module, *layout):
        moved.append((self.kind, weakref.ref(module)))
        return hold(self, module, *layout)

    monkeypatch.setattr(device, "_list_devices", lambda: ["cuda", "cpu"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA Imaginary")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (8 * 10**9, 16 * 10**9))
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda *_: SimpleNamespace(total_memory=16 * 10**9, major=6, minor=1),
    )
    monkeypatch.setattr(device.Device, "torch_device", torch.device("cpu", 0))
    monkeypatch.setattr(device.Device, "move_module", noted)
    monkeypatch.setattr(compute, "make_generator", lambda seed, *_: make_generator(seed))
    return moved
