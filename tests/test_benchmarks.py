"""Each benchmark runs as documents write it: from the checkout, with nothing installed but the requirements, with the options they give."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_documents import DOCUMENTS

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [file for file in sorted(ROOT.glob("benchmarks/*.py")) if '__name__ == "__main__"' in file.read_text()]
TEXTS = [file.read_text() for file in (*DOCUMENTS, *ROOT.glob("benchmarks/*.py"))]
COMMANDS = [command for text in TEXTS for command in re.findall(r"^ *(python .*benchmarks.*)$", text, re.M)]


def test_documents_name_benchmarks_that_exist_in_one_form():
    named = [re.match(r"python -m benchmarks\.(\w+)", command) for command in COMMANDS]
    assert all(named), COMMANDS
    assert {name[1] for name in named} == {file.stem for file in SCRIPTS}


@pytest.mark.slow
@pytest.mark.parametrize("name", [file.stem for file in SCRIPTS])
def test_it_says_what_it_measures_and_which_options_it_takes(name):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")
    used = {option for line in COMMANDS if f"benchmarks.{name} " in line for option in re.findall(r"--[\w-]+", line)}
    # The options as argparse lists them, which follow the description that quotes the command.
    listed = set(re.findall(r"--[\w-]+", done.stdout.rpartition("options:")[2]))
    assert used <= listed
