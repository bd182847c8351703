"""A run that tasks train has one owner at a time, despite failing processes and machines."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace

import psutil
import pytest

from finetune_core.errors import RunError
from finetune_core.runs import ownership
from finetune_core.runs.locks import acquire_lock, is_locked
from finetune_core.runs.ownership import RunTakenOver, claim, current_holder, is_owned
from tests.deadline import wait_until


def elsewhere(run_dir, number=1, **changes):
    """Write the owner's file of a process on another machine."""
    holder = replace(current_holder("task"), host="far", machine="far", **changes)
    (run_dir / f"owner-{number}.json").write_text(json.dumps(asdict(holder)))
    return run_dir / f"owner-{number}.json"


def hold(run_dir, line):
    """Own the run until this process is killed."""
    owner = claim(run_dir, task="other")
    line.send(owner.number)
    line.poll(300)


@pytest.fixture
def clock(monkeypatch):
    """Clock by which owners become stale; ``sleep`` advances it."""

    class Clock:
        now, time = 0.0, staticmethod(time.time)

        def monotonic(self):
            return self.now

        def sleep(self, seconds):
            self.now += seconds

    monkeypatch.setattr(ownership, "time", Clock())
    return ownership.time


def test_who_owns_a_run_is_asked_and_gives_it_back(tmp_path):
    owner = claim(tmp_path, task="mine")
    assert is_owned(tmp_path)
    assert is_locked(tmp_path)
    with pytest.raises(RunError, match="going on already on"):
        claim(tmp_path)
    owner.release()
    assert not is_owned(tmp_path)
    again = claim(tmp_path)
    assert (again.number, again.before.task) == (2, "mine")
    assert [file.name for file in tmp_path.iterdir()] == ["owner-2.json"]
    again.release()


def test_a_local_process_does_not_get_a_run_that_a_task_has(tmp_path, monkeypatch):
    monkeypatch.setattr("finetune_core.runs.locks.LOCK_TIMEOUT", 0.2)
    owner = claim(tmp_path)
    with pytest.raises(RunError, match="going on already"):
        acquire_lock(tmp_path)
    owner.release()
    lock = acquire_lock(tmp_path)
    assert is_owned(tmp_path)
    lock.release()
    assert not is_locked(tmp_path)


@pytest.mark.processes
def test_the_run_of_a_killed_process_is_taken_over_at_once(tmp_path, processes):
    line, far_end = processes.Pipe()
    process = processes.Process(target=hold, args=(tmp_path, far_end))
    process.start()
    assert line.poll(300)
    number = line.recv()
    with pytest.raises(RunError, match="going on already"):
        claim(tmp_path)
    process.kill()
    process.join(300)
    assert not is_owned(tmp_path)
    owner = claim(tmp_path)
    assert owner.number == number + 1
    owner.release()


def test_a_process_that_has_ended_has_nothing_though_its_parent_has_not_noticed():
    child = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
    seen = psutil.Process(child.pid)
    holder = replace(current_holder(), pid=child.pid, began=seen.create_time())
    assert holder.is_alive
    seen.kill()
    wait_until(lambda: seen.status() == psutil.STATUS_ZOMBIE)
    assert not holder.is_alive
    child.wait()


def test_an_owner_on_another_machine_is_waited_for_as_long_as_its_file_changes(tmp_path, clock):
    file = elsewhere(tmp_path)
    for beat in range(4):
        os.utime(file, (beat, time.time()))
        assert is_owned(tmp_path)
        with pytest.raises(RunError, match="on far"):
            claim(tmp_path)
        clock.sleep(0.9 * ownership.STALE)
    owner = claim(tmp_path, patience=ownership.STALE)
    assert owner.number == 2
    owner.release()


def test_one_that_has_not_been_seen_for_long_is_gone_at_the_first_look(tmp_path):
    os.utime(elsewhere(tmp_path), (0, 0))
    assert not is_owned(tmp_path)


def test_two_that_wait_for_a_stale_owner_do_not_both_get_the_run(tmp_path, clock):
    elsewhere(tmp_path)
    assert is_owned(tmp_path)
    clock.sleep(ownership.STALE)
    assert not is_owned(tmp_path)
    first = ownership._create_next_owner(tmp_path, 1, None, "a", lambda: None)
    assert ownership._create_next_owner(tmp_path, 1, None, "b", lambda: None) is None
    first.release()


def test_an_owner_that_lost_the_run_notices_and_touches_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(ownership, "BEAT", 0.05)
    lost = []
    owner = claim(tmp_path, lost=lambda: lost.append(True))
    owner.check()
    (tmp_path / "owner-1.json").unlink()
    file = elsewhere(tmp_path, 2)
    before = file.read_bytes()
    wait_until(lambda: lost)
    with pytest.raises(RunTakenOver, match="taken over"):
        owner.check()
    owner.release()
    assert [one.name for one in tmp_path.iterdir()] == ["owner-2.json"]
    assert file.read_bytes() == before


def test_one_that_was_suspended_looks_before_it_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(ownership, "BEAT", 1000.0)  # its thread does not come to it
    owner = claim(tmp_path)
    elsewhere(tmp_path, 2)
    monkeypatch.setattr(ownership, "BEAT", -1.0)
    with pytest.raises(RunTakenOver):
        owner.check()
    owner.release()


def test_a_run_is_handed_over_by_an_owner_that_is_still_there(tmp_path):
    driver = claim(tmp_path)
    task = claim(tmp_path, handed=driver.number, task="task")
    driver.release()
    assert is_owned(tmp_path)
    with pytest.raises(RunError):
        claim(tmp_path, handed=driver.number)
    task.release()


def test_a_run_that_a_task_had_can_be_given_to_the_next_one(tmp_path):
    claim(tmp_path, task="first").release()
    lock = acquire_lock(tmp_path)  # as whoever resumes it does
    number = lock.become_owner()
    assert lock.become_owner() == number
    assert lock.is_held()
    task = claim(tmp_path, handed=number, task="second")
    assert not lock.is_held()
    lock.release()
    assert is_owned(tmp_path)
    task.release()


def test_a_file_that_is_no_owner_s_counts_while_it_is_new(tmp_path, clock):
    (tmp_path / "owner-7.json").write_text("{")
    assert is_owned(tmp_path)
    clock.sleep(ownership.STALE)
    assert not is_owned(tmp_path)
    owner = claim(tmp_path)
    assert owner.number == 8
    owner.release()


@pytest.mark.parametrize("pid", [-5, 0, 2**22 + 1, 2**80])
def test_a_number_that_no_process_has_is_nobody_s(tmp_path, pid):
    holder = replace(current_holder(), pid=pid)
    (tmp_path / "owner-1.json").write_text(json.dumps(asdict(holder)))
    assert not is_owned(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="POSIX links")
def test_a_link_or_a_folder_is_no_owner_s_file(tmp_path):
    (tmp_path / "owner-1.json").symlink_to("/etc/hostname")
    (tmp_path / "owner-2.json").mkdir()
    assert not is_owned(tmp_path)
