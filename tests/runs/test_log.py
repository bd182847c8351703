"""A run's log says in words what happened; what it needs is kept while the events grow."""

import re

import pytest

from finetune_core.config import make_config
from finetune_core.runs.history import History
from finetune_core.runs.log import arithmetic, log_line, log_lines
from finetune_core.runs.record import create_run, execute
from finetune_core.training.events import (
    ImagesLost,
    ImagesSkipped,
    MemoryShort,
    RunFailed,
    RunPlaced,
    RunStopped,
)


@pytest.fixture
def run_dir(image_folder, tmp_path):
    folder = image_folder(tmp_path / "images", {"red": 10, "blue": 10})
    settings = {
        "data": str(folder),
        "image_size": 32,
        "batch_size": 16,
        "epochs": 3,
        "strategy": "gradual_unfreezing",
    }
    reservation = create_run(
        make_config(settings | {"backbone": "resnet18", "weights": "none", "epochs": 6}),
        tmp_path / "runs",
    )
    list(execute(reservation))
    return reservation.run_dir


def test_a_whole_run_in_words(run_dir):
    history = History(run_dir).refresh()
    lines = log_lines(history.notable)
    assert all(re.match(r"\d\d:\d\d:\d\d  \S", line) for line in lines)
    text = "\n".join(lines)
    assert "Decoding images." in text
    assert "resnet18 on" in text
    assert text.count("Epoch ") == 6
    assert "From the next epoch on layer4 trains, too." in text
    assert "Validating" not in text
    assert "Finished after" in lines[-1]
    assert next(len(row["stages"]) for row in history.measured if row["epoch"] == 3) == 3


def test_it_says_whether_the_frozen_stages_were_compiled(run_dir):
    started = History(run_dir).refresh().started
    # gradual unfreezing trains the first stages, too
    assert "frozen stages cached" not in log_line(started)
    cache = {"where": "memory", "bytes": 10**6, "compilation": "compiled after 96 images"}
    assert "frozen stages cached (1.0 MB, compiled after 96 images). " in log_line(
        started | {"cache": cache}
    )
    assert "frozen stages cached (1.0 MB). " in log_line(
        started | {"cache": cache | {"compilation": ""}}
    )


def test_words_for_what_goes_wrong():
    skipped = log_line(ImagesSkipped(1, ["a.png is damaged"]).to_json())
    assert ("1 image." in skipped, skipped.endswith("a.png is damaged")) == (True, True)
    assert "1,200 images" in log_line(ImagesLost(1200, []).to_json())
    assert "8 at a time" in log_line(MemoryShort(2, 5, 8).to_json())
    assert log_line(RunStopped(1, 1, 2.0, True).to_json()) == "Paused."
    assert log_line(RunFailed("The disk is full.", "").to_json()) == "Failed: The disk is full."


def test_where_a_run_trains_and_that_it_moved():
    assert log_line(RunPlaced("left", "task").to_json()) == "On left."
    assert (
        log_line(RunPlaced("right", "task", "left").to_json())
        == "Moved to right: the process on left that trained it is gone."
    )


def test_a_run_on_an_nvidia_gpu_says_how_it_computed(started):
    found = {"tf32": False, "cudnn_benchmark": True}
    row = started(device="cuda", precision="bf16", numerics=found).to_json()
    assert "on Processor in bf16 (TF32 off, cuDNN benchmark on): " in log_line(row)
    assert (
        arithmetic(started(numerics=found).to_json())
        == arithmetic(started(device="cuda").to_json())
        == "fp32"
    )


def test_tens_of_thousands_of_steps_stay_few(tmp_path, started, step, lines):
    measured = {"head": {"learning_rate": 1e-3, "gradient_norm": 1.0, "update": 1e-3}}
    with (tmp_path / "events.jsonl").open("wb") as file:
        file.write(lines(started(steps_per_epoch=40_000)))
        for number in range(1, 40_001):
            file.write(lines(step(1, number, stages=measured if number % 4 == 0 else None)))
            if number % 10 == 0:
                file.write(lines(ImagesLost(number, [])))
    history = History(tmp_path).refresh()
    assert len(history.steps) <= 3000
    assert len(history.measured) <= 1000
    assert len(history.notable) <= 2001
    assert (history.steps[-1]["step"], history.measured[-1]["step"], history.lost["count"]) == (
        40_000,
        40_000,
        40_000,
    )
