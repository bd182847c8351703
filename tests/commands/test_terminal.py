import signal

import pytest
import typer

from finetune_core.commands import terminal
from finetune_core.commands.options import report_errors
from finetune_core.commands.terminal import (
    describe_result,
    print_table,
    progress_bar,
    show_work,
    stop_on_interrupt,
)
from finetune_core.errors import ConfigError, DataError
from finetune_core.formatting import PHASE_TITLES
from finetune_core.work import Step


def test_every_phase_of_work_has_a_bar_and_its_result_is_handed_on():
    def work():
        yield Step(1, 2)
        yield Step(0, None, "export")
        yield Step(2, 3, "probe")
        yield Step(3, 3, "probe")
        return "result"

    bar = progress_bar()
    assert show_work(bar, work(), "Counting") == "result"
    assert [(task.description, task.completed, task.total) for task in bar.tasks] == [
        ("Counting", 1, 2),
        (PHASE_TITLES["export"], 0, None),
        (PHASE_TITLES["probe"], 3, 3),
    ]


def test_work_that_waits_for_the_device_says_so_once(capsys):
    def work():
        yield from [Step(0, None, "device")] * 3
        yield Step(1, 2, "rates")

    bar = progress_bar()
    show_work(bar, work())
    assert capsys.readouterr().err.splitlines() == [f"{PHASE_TITLES['device']}."]
    assert [task.description for task in bar.tasks if task.visible] == [PHASE_TITLES["rates"]]


def test_keys_of_one_burst_count_as_one_even_after_the_run_has_stopped(monkeypatch):
    heard = []
    monkeypatch.setattr(terminal, "_abort", lambda *_: heard.append("abort"))
    before = signal.signal(signal.SIGINT, terminal._abort)
    try:
        monkeypatch.setattr(terminal, "_BURST", float("inf"))
        with stop_on_interrupt(lambda: heard.append("stop")):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert heard == ["stop"]
        monkeypatch.setattr(terminal, "_BURST", -1.0)
        signal.raise_signal(signal.SIGINT)
        assert heard == ["stop", "abort"]
    finally:
        signal.signal(signal.SIGINT, before)


FORGED = "cat\nred: 100 images\tok\r\x1b[2J"
SHOWN = "cat\\nred: 100 images\\tok\\r\\x1b[2J"


def test_a_name_with_line_ends_stays_on_its_line_in_tables_and_bars(capsys):
    print_table(["Class", "Images"], [[FORGED, "7"], ["dog", "8"]])
    table = capsys.readouterr().out
    assert len(table.splitlines()) == 3
    assert SHOWN in table
    bar = progress_bar()

    def work():
        yield Step(1, 2, "index", FORGED)

    show_work(bar, work(), FORGED)
    assert bar.tasks[0].description == SHOWN
    assert bar.tasks[1].fields["note"] == SHOWN


def test_a_name_with_line_ends_stays_on_its_line_in_errors(capsys):
    for error in (DataError(FORGED), ConfigError({"data": FORGED})):
        with pytest.raises(typer.Exit), report_errors():
            raise error
        [line] = capsys.readouterr().err.splitlines()
        assert SHOWN in line


def test_an_accuracy_is_never_rounded_up_to_perfect():
    result = {
        "best_epoch": 2,
        "test_accuracy": 0.99996,
        "val_accuracy": 0.5,
        "seconds": 3.0,
        "status": "finished",
        "converged": True,
    }
    words = describe_result(result | {"evaluation_precision": "fp32", "run_dir": "/runs/one"})
    assert "validation accuracy 50.0 %, test accuracy 99.9 %" in words
