"""Imports of a command before it computes anything: torch alone takes seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from finetune_core.__main__ import app

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "torchvision", "timm", "sklearn")
RUN = """
import json, sys
from typer.testing import CliRunner
from finetune_core.__main__ import app

for arguments in json.loads(sys.argv[1]):
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
print(*(name for name in json.loads(sys.argv[2]) if name in sys.modules))
"""


@pytest.mark.processes
def test_help_fetch_and_inspect_need_no_torch(image_folder, tmp_path):
    commands = typer.main.get_command(app).commands
    assert "train" in commands
    data = image_folder(tmp_path / "images", {"red": 6, "blue": 6})
    calls = [["--help"], *([name, "--help"] for name in commands), ["fetch"], ["inspect", data]]
    arguments = [json.dumps(calls, default=str), json.dumps(HEAVY)]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr
