"""The ``advise`` command and function: recommended networks before anything is trained."""

import json

import pytest
from typer.testing import CliRunner

import finetune_core as thaw_api
from finetune_core.__main__ import app
from finetune_core.commands import advise as command
from finetune_core.errors import ConfigError
from finetune_core.evaluation.advice.advise import UNKNOWN
from finetune_core.models.catalogue import list_ready_backbones
from finetune_core.training.forecast import timing
from finetune_core.training.heads import logistic
from tests.factories import shared_images, tiny_folder

SETTINGS = {"images": 24, "image_size": 32, "epochs": 1, "batch_size": 8, "precision": "fp32"}
OPTIONS = [
    text for name, value in SETTINGS.items() for text in (f"--{name.replace('_', '-')}", str(value))
]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(timing, "_SECONDS", 0.0)
    monkeypatch.setattr(logistic, "GRID", logistic.GRID[len(logistic.GRID) // 2 :][:1])


@pytest.fixture
def data():
    return shared_images(**{"red": 24, "blue <b>": 24})


def thaw(*arguments):
    return CliRunner().invoke(app, ["advise", *map(str, arguments)])


@pytest.mark.train
def test_the_json_has_candidates_and_what_is_suggested(data):
    names = (tiny_folder(), tiny_folder("test_vit"))
    asked = ",".join([*names, "nonsense"])
    done = thaw(data, "--backbones", asked, *OPTIONS, "--budget", 5, "--json")
    assert (done.exit_code, done.stdout.count("\n")) == (0, 1)
    found = json.loads(done.stdout)
    fields = {"backbone", "stage", "accuracy", "ci_low", "ci_high", "seconds", "images"}
    for one in found["candidates"]:
        assert fields <= one.keys()
        assert one["seconds"] > 0
        assert one["images"] == found["images"] == 24
    assert {one["backbone"] for one in found["candidates"]} == set(names)
    assert {one["backbone"] for one in found["suggested"]} == set(names)
    assert all(one["strategy"] == "last_block" and one["reason"] for one in found["suggested"])
    assert (found["budget_minutes"], found["cannot_predict"]) == (5, UNKNOWN)
    (failed,) = found["failed"]
    assert failed["backbone"] == "nonsense"
    assert {"linear_probe", "last_block", "full"} <= found["networks"][0]["forecast_seconds"].keys()


@pytest.mark.train
def test_people_and_notebooks_read_the_same_ranking(data):
    name = tiny_folder()
    done = thaw(data, "--backbones", f"{name},nonsense", *OPTIONS)
    assert done.exit_code == 0, done.stderr
    ranking = next(line for line in done.stdout.splitlines() if line.strip().startswith(name))
    assert "best" in ranking
    assert "24 training images" in done.stdout
    assert f"1. {name}: The best probe" in done.stdout
    assert "cannot predict how much fine-tuning will add" in done.stdout
    assert "nonsense was left out: there is no backbone 'nonsense'" in done.stderr
    advice = thaw_api.advise(data, [name], **SETTINGS, progress=False)
    assert advice.candidates[0].stage in ranking
    assert name in repr(advice)
    shown = advice._repr_html_()
    assert advice.candidates[0].stage in shown
    assert "cannot predict" in shown


def test_where_no_network_can_be_probed_the_status_says_so(data):
    done = thaw(data, "--backbones", "nonsense", *OPTIONS, "--json")
    assert done.exit_code == 1
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
    done = thaw(data, "--backbones", tiny_folder(), option, value)
    assert done.exit_code == 2
    assert words in done.stderr


def test_without_names_all_that_are_ready_are_probed(data, monkeypatch):
    asked = []

    def probed(dataset, base, backbones, *_, **__):
        asked.append(list(backbones))
        raise ConfigError({"images": "enough"})

    monkeypatch.setattr(command, "advise", probed)
    assert thaw(data).exit_code == 2
    assert asked == [list_ready_backbones()]


@pytest.mark.parametrize("setting", ["weight_decay", "backbone"])
def test_the_function_refuses_settings_that_change_nothing(data, setting):
    with pytest.raises(ConfigError, match=setting) as refused:
        thaw_api.advise(data, [tiny_folder()], **{setting: "0.1"})
    assert list(refused.value.problems) == [setting]
