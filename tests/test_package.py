"""The package: what ``pip install -e .`` makes of a checkout, and the command that it gives."""

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.slow  # an environment of its own, and processes that start anew


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A copy of the checkout, installed into an environment of its own, which sees what is installed here, too: (checkout, bin)."""
    pytest.importorskip("setuptools", minversion="77")
    base = tmp_path_factory.mktemp("package")
    checkout = base / "checkout"
    checkout.mkdir()
    for name in ("finetune_core", "pages", ".streamlit"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("app.py", "pyproject.toml", "requirements.txt", "README.md"):
        shutil.copy(ROOT / name, checkout)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", base / "env"], check=True)
    python = base / "env" / "bin" / "python"
    [packages] = (base / "env").glob("lib/python*/site-packages")
    (packages / "outer.pth").write_text(sysconfig.get_path("purelib"))
    command = [
        python,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-e",
        checkout,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return checkout, python.parent


def run(command, cwd, **environment):
    without_home = {
        name: value for name, value in os.environ.items() if name not in ("THAW_HOME", "PYTHONPATH")
    }
    return subprocess.run(
        command,
        cwd=cwd,
        env=without_home | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_an_editable_install_gives_the_command_the_types_and_the_home(installed, tmp_path):
    checkout, binaries = installed
    done = run([binaries / "thaw", "train", "/not/there"], tmp_path)
    assert done.returncode == 2
    assert "DATA: there is no folder" in done.stderr
    result = "import finetune_core, pathlib, finetune_core.paths as p; print(pathlib.Path(finetune_core.__path__[0], 'py.typed').is_file(), p.home())"
    assert run([binaries / "python", "-c", result], tmp_path).stdout.split() == [
        "True",
        str(checkout),
    ]


def test_what_is_installed_depends_on_the_requirements_and_on_nothing_else(installed, tmp_path):
    _, binaries = installed
    result = "import importlib.metadata as m; print(*(one for one in m.requires('thaw') if 'extra ==' not in one), sep='\\n')"
    assert (
        run([binaries / "python", "-c", result], tmp_path).stdout.split()
        == (ROOT / "requirements.txt").read_text().split()
    )


def test_the_app_command_starts_the_dashboard_with_streamlits_own_options(installed, tmp_path):
    _, binaries = installed
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        binaries / "thaw",
        "app",
        "--port",
        str(port),
        "--server.headless",
        "true",
        "--server.baseUrlPath",
        "cold",
    ]
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=os.environ | {"THAW_HOME": str(tmp_path)},
            stdout=log,
            stderr=log,
        )
    try:
        answer, end = None, time.monotonic() + 300
        while answer is None and time.monotonic() < end:
            assert server.poll() is None, (tmp_path / "log").read_text()
            try:
                answer = urllib.request.urlopen(
                    f"http://127.0.0.1:{port}/cold/_stcore/health", timeout=300
                ).read()
            except OSError:
                time.sleep(0.1)
        assert answer == b"ok"
    finally:
        server.terminate()
        server.wait()
    with pytest.raises(OSError, match="refused"):  # the command was the server, not its parent
        urllib.request.urlopen(f"http://127.0.0.1:{port}/cold/_stcore/health", timeout=300)


def test_without_a_checkout_the_app_command_says_what_to_do(tmp_path):
    shutil.copytree(
        ROOT / "finetune_core",
        tmp_path / "finetune_core",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    done = run([sys.executable, "-m", "finetune_core", "app"], tmp_path)
    assert done.returncode == 2
    assert "pip install -e ." in done.stderr
    result = "import finetune_core.paths as p; print(p.home())"
    assert (
        run([sys.executable, "-c", result], tmp_path, HOME="/nobody").stdout.strip()
        == "/nobody/.thaw"
    )
