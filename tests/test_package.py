"""The package: the wheel in an empty environment, and a checkout after ``pip install -e .``."""

import os
import shutil
import subprocess
import sys
import tomllib
import urllib.request
import zipfile
from contextlib import suppress
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from finetune_core.version import __version__
from tests.deadline import wait_until
from tests.ports import free_port

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.packaging  # builds, separate environments, new processes


def requirements(name):
    """Return the requirements that a file lists itself."""
    lines = (ROOT / name).read_text().splitlines()
    return {line.lower().replace("_", "-") for line in lines if not line.startswith("-r ")}


def run(command, cwd, **environment):
    """Run a command without this process's Thaw in its environment."""
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("THAW_HOME", "PYTHONPATH")
    }
    return subprocess.run(
        command, cwd=cwd, env=inherited | environment, capture_output=True, text=True, timeout=900
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Return the wheel, built from an sdist of the checkout."""
    pytest.importorskip("build")
    target = tmp_path_factory.mktemp("dist")
    done = run([sys.executable, "-m", "build", "--no-isolation", "--outdir", target, ROOT], target)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = target.glob("thaw-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Return the programs of an environment with the wheel and its requirements."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    done = run(
        [environment / "bin" / "python", "-m", "pip", "install", "-q", "--no-compile", wheel],
        environment,
    )
    if "No matching distribution" in done.stderr and "Failed to establish" in done.stderr:
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stdout + done.stderr
    return environment / "bin"


def test_wheel_holds_the_package_with_the_dashboard_in_it(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "finetune_core",
        f"thaw-{__version__}.dist-info",
    }
    pages = [ROOT / "app.py", ROOT / ".streamlit" / "config.toml"]
    pages += [path for path in (ROOT / "pages").rglob("*.*") if path.suffix in (".py", ".js")]
    assert {f"finetune_core/dashboard/{path.relative_to(ROOT)}" for path in pages} == {
        name for name in names if name.startswith("finetune_core/dashboard/")
    }
    assert "finetune_core/py.typed" in names
    assert "finetune_core/exporters/standalone/train.template" in names


def test_wheel_requires_the_requirements_and_offers_the_extras(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    (info,) = tmp_path.glob("*.dist-info")
    required = PathDistribution(info).requires
    lines = [line.lower().replace("_", "-").replace(" ", "") for line in required]
    assert {line for line in lines if ";" not in line} == requirements("requirements.txt")
    for extra in ("ray", "tensorboard", "mlflow"):
        (line,) = requirements(f"requirements/{extra}.txt")
        assert f"{line};extra=='{extra}'" in lines
    dev = {line.split(";")[0] for line in lines if line.endswith("extra=='dev'")}
    assert requirements("requirements-dev.txt") < dev
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    # the wheel is built without isolation
    assert set(build) <= requirements("requirements-dev.txt")


def test_installed_wheel_trains_and_writes_below_the_persons_home(installed, tmp_path):
    assert run([installed / "thaw", "--version"], tmp_path).stdout == f"thaw {__version__}\n"
    command = [installed / "thaw", "train", "digits", "--epochs", "1", "--image-size", "32"]
    done = run(command, tmp_path, HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / ".thaw" / "runs").glob("*/best.safetensors"))


def test_installed_wheel_serves_the_dashboard_and_tries_it_now(installed, browser, tmp_path):
    port, log = free_port(), tmp_path / "log"
    address = f"http://127.0.0.1:{port}"
    options = ["--no-browser", "--port", str(port)]
    with log.open("wb") as file:
        server = subprocess.Popen(
            [installed / "thaw", "app", *options],
            cwd=tmp_path,
            env=os.environ | {"THAW_HOME": str(tmp_path / "home")},
            stdout=file,
            stderr=file,
        )

    def answers():
        assert server.poll() is None, log.read_text()
        with suppress(OSError), urllib.request.urlopen(f"{address}/_stcore/health") as answer:
            return answer.read() == b"ok"

    try:
        wait_until(answers, "the dashboard does not answer")
        page = browser.new_page()
        page.set_default_timeout(600_000)
        page.goto(address)
        page.get_by_role("button", name="Try it now").click()
        page.get_by_role("heading", name="training the last block").wait_for()
        page.get_by_role("button", name="See the comparison").click()
        page.get_by_role("heading", name="Test accuracy", exact=True).wait_for()
        assert page.locator("[data-testid=stException]").count() == 0
    finally:
        server.kill()  # the command is the server, not its parent
        server.wait(300)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{address}/_stcore/health")


def test_editable_install_gives_the_command_and_the_checkout_as_home(tmp_path):
    pytest.importorskip("hatchling")
    checkout, environment = tmp_path / "checkout", tmp_path / "env"
    for name in ("finetune_core", "pages", ".streamlit", "requirements"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    names = ("app.py", "README.md", "pyproject.toml")
    for path in (*ROOT.glob("requirements*.txt"), *map(ROOT.joinpath, names)):
        shutil.copy(path, checkout)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    [packages] = environment.glob("lib/python*/site-packages")
    # beside the packages installed here: nothing is installed twice
    (packages / "outer.pth").write_text("\n".join(path for path in sys.path if path))
    python = environment / "bin" / "python"
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-e", checkout]
    done = run([sys.executable, "-m", "pip", "--python", python, "install", *options], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    done = run([environment / "bin" / "thaw", "train", "/not/there"], tmp_path)
    assert done.returncode == 2
    assert "DATA: there is no folder" in done.stderr
    result = "import finetune_core.paths as p; print(p.home(), p.dashboard())"
    printed = run([python, "-c", result], tmp_path).stdout.split()
    assert printed == [str(checkout), str(checkout / "app.py")]


def test_package_without_dashboard_says_what_to_do(tmp_path):
    shutil.copytree(
        ROOT / "finetune_core",
        tmp_path / "finetune_core",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    (tmp_path / "app.py").touch()  # another package's file: this is no checkout
    result = "import finetune_core.paths as p; print(p.home())"
    command = [sys.executable, "-c", result]
    assert run(command, tmp_path, HOME="/nobody").stdout.strip() == "/nobody/.thaw"
    (tmp_path / "app.py").unlink()
    done = run([sys.executable, "-m", "finetune_core", "app"], tmp_path)
    assert done.returncode == 2
    assert "The dashboard is missing" in done.stderr
