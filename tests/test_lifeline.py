"""Processes end with their parent, even while C code holds the interpreter lock."""

import subprocess
import sys

import psutil
import pytest

from tests.deadline import SECONDS, wait_until_gone

BLOCKED = """
import ctypes, subprocess, sys
from finetune_core.lifeline import exit_with_stdin
exit_with_stdin()
inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
print(inner.pid, flush=True)
ctypes.PyDLL(None).sleep(1000)  # with the interpreter lock
"""

ASKING = """
import subprocess, sys, threading
subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, start_new_session=True)
threading.Event().wait()
"""


def started(code, **options):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread needs the interpreter lock")
def test_a_process_that_holds_the_interpreter_lock_ends_with_its_stdin_and_its_group():
    process = started(BLOCKED, start_new_session=True)
    inner = psutil.Process(int(process.stdout.readline()))
    process.stdin.close()
    try:
        assert process.wait(SECONDS) < 0
        wait_until_gone([inner])
    finally:
        process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread needs the interpreter lock")
def test_it_ends_with_a_killed_parent():
    parent = subprocess.Popen(
        [sys.executable, "-c", ASKING, BLOCKED], stdout=subprocess.PIPE, text=True
    )
    inner = psutil.Process(int(parent.stdout.readline()))
    blocked = inner.parent()
    parent.kill()
    parent.wait()
    try:
        wait_until_gone([inner, blocked])
    finally:
        for one in (inner, blocked):
            if one.is_running():
                one.kill()


@pytest.mark.parametrize("leads", [True, False])
def test_a_stdin_that_was_closed_before_counts_and_spares_another_group(leads):
    """Start a process that does not lead its group, which is this test's. It ends alone."""
    code = "import sys; sys.stdin.read(); from finetune_core.lifeline import exit_with_stdin\n"
    process = started(f"{code}exit_with_stdin()\nwhile True: pass", start_new_session=leads)
    process.stdin.close()
    assert process.wait(SECONDS) < 0
