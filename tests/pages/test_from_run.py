"""An earlier run is chosen as what the next one starts from; pages say what a run started from."""

import pytest

from finetune_core import paths
from finetune_core.config import make_config
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.store import RunStore, read_run
from tests.pages.harness import address, button, open_page, words
from tests.trained import QUICK


@pytest.fixture
def parent(trained_once, monkeypatch):
    monkeypatch.setenv("THAW_DATA_ROOTS", str(trained_once.data))
    (folder,) = trained_once.copied(paths.runs_dir(), "last_block")
    return read_run(folder)


def test_a_run_is_chosen_as_the_start_and_its_backbone_follows(parent, trained_once, known):
    at = open_page("configure", data=known(trained_once.data))
    at.selectbox(key="form_backbone").set_value("resnet18").run()
    at.session_state["more_settings"] = True
    at.selectbox(key="weights_from").set_value("An earlier run").run()
    assert not at.exception
    assert at.selectbox(key="weights_run").value == str(parent.run_dir)
    assert at.selectbox(key="form_backbone").value == "efficientnet_lite0"
    assert at.number_input(key="form_image_size").value == QUICK["image_size"]
    assert f"Starts from {parent.run_id}" in words(at).replace("\\", "")
    again = open_page("configure", **address(at))
    assert again.selectbox(key="weights_run").value == str(parent.run_dir)
    again.number_input(key="form_epochs").set_value(1)
    button(again, "Start training").click().run()
    assert not again.exception
    child = next(run for run in RunStore(paths.runs_dir()).runs() if run.run_id != parent.run_id)
    assert child.config.from_run == str(parent.run_dir)
    assert (child.run_dir / "start.safetensors").exists()


def test_another_backbone_and_no_run_at_all_are_refused_in_words(
    parent, trained_once, known, tmp_path
):
    at = open_page("configure", data=known(trained_once.data))
    at.session_state["more_settings"] = True
    at.selectbox(key="weights_from").set_value("An earlier run").run()
    at.selectbox(key="form_backbone").set_value("resnet18").run()
    assert "follows from the run to start from" in words(at)
    at.selectbox(key="form_backbone").set_value("efficientnet_lite0")
    parent.run_dir.rename(tmp_path / "gone")
    at.run()
    assert "Earlier run there is no run in" in words(at)
    assert button(at, "Start training").disabled


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_a_run_shows_what_it_started_from(parent, trained_once, name):
    settings = QUICK | {
        "data": str(trained_once.data),
        "from_run": str(parent.run_dir),
        "epochs": 1,
    }
    reservation = create_run(make_config(settings), paths.runs_dir())
    list(execute(reservation))
    at = open_page(name, run=reservation.run_dir.name)
    shown = words(at).replace("\\", "")
    assert f"Started from run {parent.run_id} (last block on images, best epoch " in shown
    assert "Its head was kept." in shown


def test_the_table_of_runs_names_it_and_finds_by_it(parent, trained_once):
    settings = QUICK | {
        "data": str(trained_once.data),
        "from_run": str(parent.run_dir),
        "epochs": 1,
    }
    list(execute(create_run(make_config(settings), paths.runs_dir())))
    at = open_page("runs")
    assert list(at.dataframe[0].value["Started from"]) == [parent.run_id, ""]
