"""The log of a run as text, and the rows that it needs while the events grow."""

import re

import pytest

from finetune_core.runs.history import History
from finetune_core.runs.log import describe_event, describe_precision, format_log
from finetune_core.training.events import (
    HeadInitialized,
    ImagesLost,
    ImagesSkipped,
    MemoryShort,
    RunFailed,
    RunPlaced,
    RunStopped,
)
from tests.factories import trained_run


def gradual_history():
    run = trained_run(strategy="gradual_unfreezing", epochs=6)
    return History(run.run_dir).refresh()


@pytest.mark.train
def test_a_whole_run_in_words():
    history = gradual_history()
    lines = format_log(history.notable)
    assert all(re.match(r"\d\d:\d\d:\d\d  \S", line) for line in lines)
    text = "\n".join(lines)
    assert "Decoding images." in text
    assert "test_resnet on" in text
    assert text.count("Epoch ") == 6
    assert "From the next epoch on layer4 trains, too." in text
    assert "Validating" not in text
    assert "Finished after" in lines[-1]
    assert next(len(row["stages"]) for row in history.measured_steps if row["epoch"] == 3) == 3


def test_it_says_whether_the_frozen_stages_were_compiled():
    started = gradual_history().started
    # gradual unfreezing trains the first stages, too
    assert "frozen stages cached" not in describe_event(started)
    cache = {"where": "memory", "bytes": 10**6, "compilation": "compiled after 96 images"}
    assert "frozen stages cached (1.0 MB, compiled after 96 images). " in describe_event(
        started | {"cache": cache}
    )
    assert "frozen stages cached (1.0 MB). " in describe_event(
        started | {"cache": cache | {"compilation": ""}}
    )


def test_words_for_an_initial_head():
    text = describe_event(HeadInitialized(120, 512, 0.0316, 0.25, 0.95, 3.0).to_json())
    assert "fitted to 512 features of 120 training images in 3.0 s: C = 0.032" in text
    assert "loss 0.250, accuracy 95.0 % on them" in text


def test_words_for_what_goes_wrong():
    skipped = describe_event(ImagesSkipped(1, ["a.png is damaged"]).to_json())
    assert ("1 image." in skipped, skipped.endswith("a.png is damaged")) == (True, True)
    assert "1,200 images" in describe_event(ImagesLost(1200, []).to_json())
    assert "8 at a time" in describe_event(MemoryShort(2, 5, 8).to_json())
    assert describe_event(RunStopped(1, 1, 2.0, True).to_json()) == "Paused."
    assert (
        describe_event(RunFailed("The disk is full.", "").to_json()) == "Failed: The disk is full."
    )


def test_where_a_run_trains_and_that_it_moved():
    assert describe_event(RunPlaced("left", "task").to_json()) == "On left."
    assert (
        describe_event(RunPlaced("right", "task", "left").to_json())
        == "Moved to right: the process on left that trained it is gone."
    )


def test_a_run_on_an_nvidia_gpu_says_how_it_computed(started):
    found = {"tf32": False, "cudnn_benchmark": True}
    row = started(device="cuda", precision="bf16", numerics=found).to_json()
    assert "on Processor in bf16 (TF32 off, cuDNN benchmark on): " in describe_event(row)
    assert (
        describe_precision(started(numerics=found).to_json())
        == describe_precision(started(device="cuda").to_json())
        == "fp32"
    )


def test_thousands_of_steps_stay_few(tmp_path, started, step, lines):
    measured = {"head": {"learning_rate": 1e-3, "gradient_norm": 1.0, "update": 1e-3}}
    with (tmp_path / "events.jsonl").open("wb") as file:
        file.write(lines(started(steps_per_epoch=8_000)))
        for number in range(1, 8_001):
            file.write(lines(step(1, number, stages=measured if number % 4 == 0 else None)))
            if number % 3 == 0:
                file.write(lines(ImagesLost(number, [])))
    history = History(tmp_path).refresh()
    assert len(history.steps) <= 3000
    assert len(history.measured_steps) <= 1000
    assert len(history.notable) <= 2001
    assert (history.steps[-1]["step"], history.measured_steps[-1]["step"]) == (8_000, 8_000)
    assert history.lost["count"] == 7_998
