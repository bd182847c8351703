"""LoRA on the pages: its settings with the strategy, its stages drawn as tinted, and a run that is trained from the form."""

import pytest

from finetune_core import paths
from finetune_core.config import make_config
from finetune_core.evaluation.comparison.arms import arm_titles
from finetune_core.models.network import network_stages
from finetune_core.runs.store import RunStore
from finetune_core.training.checkpoints import load_checkpoint
from tests.deadline import wait_until
from tests.pages.harness import address, button, open_page, unescaped, words

QUICK = {
    "epochs": 1,
    "image_size": 32,
    "batch_size": 8,
    "precision": "fp32",
    "strategy": "lora",
    "learning_rate": "0.002",
}


@pytest.fixture
def drawn(monkeypatch):
    """The tiles of the last drawing of stages."""
    found = []
    monkeypatch.setattr(
        "pages.shared.configure.stages._ROW", lambda data, **_: found.append(data["tiles"])
    )
    return found


def test_its_settings_come_with_the_strategy_and_its_stages_are_tinted(folder, known, drawn):
    at = open_page("configure", data=known(folder), form=QUICK)
    assert at.number_input(key="form_lora_rank").value == 8
    assert at.text_input(key="form_lora_alpha").value == "16"
    assert at.selectbox(key="form_lora_norms").value == "frozen"
    box = at.selectbox(key="lora_from")
    assert (box.value, box.options[0], box.options[-1]) == (None, "stem", "block7")
    assert [tile["look"] for tile in drawn[-1]] == ["tinted"] * 8 + ["head"]
    box.select("block6").run()
    assert not at.exception
    assert [tile["look"] for tile in drawn[-1]] == ["frozen"] * 6 + ["tinted"] * 2 + ["head"]
    stage = network_stages("efficientnet_lite0", 2)[6]
    trained = sum(min(8, *shape) * sum(shape) for shape in stage.matrices.values())
    assert drawn[-1][6]["word"] == f"LoRA {100 * trained / stage.parameter_count:.1f} %"
    assert "LoRA's factors beside frozen weights" in words(at)
    again = open_page("configure", **address(at))
    assert again.selectbox(key="lora_from").value == "block6"
    again.session_state["form_strategy"] = "full"
    again.run()
    assert not again.exception
    assert not [box for box in again.selectbox if box.key == "lora_from"]
    assert "LoRA" not in words(again)


def test_what_does_not_fit_is_said_beside_its_field(folder, known):
    at = open_page(
        "configure",
        data=known(folder),
        form=QUICK | {"l2_sp": "0.1"},
        state={"more_settings": True},
    )
    assert "L2-SP pulls whole weights back" in unescaped(at)
    assert button(at, "Start training").disabled


def test_a_run_from_the_form_trains_is_evaluated_and_exported(folder, known, drawn):
    at = open_page(
        "configure",
        data=known(folder),
        form=QUICK | {"lora_rank": 4},
        state={"lora_from": "block7"},
    )
    button(at, "Start training").click().run()
    assert not at.exception

    def run():
        return RunStore(paths.runs_dir()).runs()[0]

    wait_until(lambda: run().status not in ("queued", "waiting", "running"))
    assert run().status == "finished", run().history.end
    assert (run().config.lora_from, run().config.lora_rank) == ("block7", 4)
    tensors, _ = load_checkpoint(run().run_dir, "best")
    assert {name for name in tensors if "lora" not in name} == {
        "classifier.weight",
        "classifier.bias",
    }
    assert [tile["look"] for tile in drawn[-1]][-2:] == ["tinted", "head"]
    for page in ("train", "evaluate", "predict", "runs"):
        open_page(page, run=run().run_id)


def test_arms_are_told_apart_by_the_first_stage_with_factors():
    whole, late = (
        make_config({"data": "x", "strategy": "lora", "lora_from": stage})
        for stage in (None, "block6")
    )
    assert arm_titles([whole, late]) == [
        "LoRA (low-rank updates)",
        "LoRA (low-rank updates) from block6 on",
    ]
