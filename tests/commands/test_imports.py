"""What a command imports before it has anything to compute: torch alone takes seconds."""

import json
import os
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


def imported(*calls):
    """Which of the heavy packages these calls of the command line import, all in one process of their own."""
    command = [
        sys.executable,
        "-c",
        RUN,
        json.dumps([[*map(str, call)] for call in calls]),
        json.dumps(HEAVY),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_help_needs_no_torch():
    commands = typer.main.get_command(app).commands
    assert "train" in commands
    assert imported(["--help"], *([name, "--help"] for name in commands)) == []


@pytest.mark.parametrize("call", ["fetch", "inspect"])
def test_what_looks_at_data_needs_no_torch(image_folder, tmp_path, call):
    data = image_folder(tmp_path / "images", {"red": 6, "blue": 6})
    assert imported([call, data] if call == "inspect" else [call]) == []
