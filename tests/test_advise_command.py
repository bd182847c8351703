"""The ``advise`` command and its function: which networks to fine-tune, before anything is trained."""

import json

import pytest

import finetune_core as thaw_api
from finetune_core.errors import ConfigError
from finetune_core.evaluation.advice.advise import UNKNOWN
from finetune_core.models.catalogue import ready_backbones
from finetune_core.training import logistic, timing
from tests.test_main import thaw

NAMES = ("efficientnet_lite0", "efficientnet_lite1")
QUICK = [
    "--images",
    "24",
    "--image-size",
    "32",
    "--epochs",
    "1",
    "--batch-size",
    "8",
    "--precision",
    "fp32",
]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(timing, "_SECONDS", 0.0)
    monkeypatch.setattr(logistic, "GRID", logistic.GRID[::4])


@pytest.fixture
def data(image_folder, tmp_path):
    return image_folder(tmp_path / "images", {"red": 24, "blue <b>": 24})


def test_the_json_has_candidates_and_what_is_suggested(data):
    done = thaw(
        "advise",
        data,
        "--backbones",
        ",".join([*NAMES, "nonsense"]),
        *QUICK,
        "--budget",
        "5",
        "--json",
    )
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    found = json.loads(done.stdout)
    assert {"backbone", "stage", "accuracy", "ci_low", "ci_high", "seconds", "images"} <= found[
        "candidates"
    ][0].keys()
    assert {one["backbone"] for one in found["candidates"]} == set(NAMES)
    assert all(
        one["seconds"] > 0 and one["images"] == found["images"] == 24 for one in found["candidates"]
    )
    assert {one["backbone"] for one in found["suggested"]} == set(NAMES)
    assert all(one["strategy"] == "last_block" and one["reason"] for one in found["suggested"])
    assert (found["budget_minutes"], found["cannot_predict"]) == (5, UNKNOWN)
    (failed,) = found["failed"]
    assert failed["backbone"] == "nonsense"
    assert {"linear_probe", "last_block", "full"} <= found["networks"][0]["forecast_seconds"].keys()


def test_for_people_the_ranking_comes_first_and_what_failed_is_on_stderr(data):
    done = thaw("advise", data, "--backbones", f"{NAMES[0]},nonsense", *QUICK)
    assert done.returncode == 0, done.stderr
    ranking = next(line for line in done.stdout.splitlines() if line.strip().startswith(NAMES[0]))
    assert "best" in ranking
    assert "24 training images" in done.stdout
    assert "1. efficientnet_lite0: The best probe" in done.stdout
    assert "cannot predict how much fine-tuning will add" in done.stdout
    assert "nonsense was left out: there is no backbone 'nonsense'" in done.stderr


def test_where_no_network_can_be_probed_the_status_says_so(data):
    done = thaw("advise", data, "--backbones", "nonsense", *QUICK, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["candidates"] == []


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--images", "5", "--images: must be 20 to 5,000, not 5"),
        ("--budget", "0", "--budget: must be minutes"),
        ("--epochs", "x", "--epochs"),
    ],
)
def test_wrong_requests_end_with_2_and_words(data, option, value, words):
    done = thaw("advise", data, "--backbones", NAMES[0], option, value)
    assert done.returncode == 2
    assert words in done.stderr


def test_without_names_all_that_are_ready_are_probed(data, monkeypatch):
    from finetune_core.commands import advise as command

    asked = []

    def probed(dataset, base, backbones, *_, **__):
        asked.append(list(backbones))
        raise ConfigError({"images": "enough"})

    monkeypatch.setattr(command, "advise", probed)
    assert thaw("advise", data).returncode == 2
    assert asked == [ready_backbones()]


def test_the_function_gives_what_the_command_prints_and_escapes_names(data):
    advice = thaw_api.advise(
        data,
        NAMES[:1],
        images=24,
        image_size=32,
        epochs=1,
        batch_size=8,
        precision="fp32",
        progress=False,
    )
    printed = json.loads(thaw("advise", data, "--backbones", NAMES[0], *QUICK, "--json").stdout)
    assert [one["stage"] for one in advice.to_json()["candidates"]] == [
        one["stage"] for one in printed["candidates"]
    ]
    assert "efficientnet_lite0" in repr(advice)
    shown = advice._repr_html_()
    assert advice.candidates[0].stage in shown
    assert "cannot predict" in shown


@pytest.mark.parametrize("setting", ["weight_decay", "backbone"])
def test_the_function_refuses_settings_that_change_nothing(data, setting):
    with pytest.raises(ConfigError, match=setting) as refused:
        thaw_api.advise(data, NAMES[:1], **{setting: "0.1"})
    assert list(refused.value.problems) == [setting]
