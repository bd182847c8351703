"""Start from an earlier run: its choice on Configure, and its mention on other pages."""

import pytest

from finetune_core import paths
from finetune_core.runs.store import RunStore
from tests.factories import shared_images, tiny_config, train, trained_run
from tests.pages.harness import (
    address,
    button,
    open_page,
    page_text,
    place_run,
    press,
    unescaped_text,
)


@pytest.fixture
def parent(monkeypatch):
    monkeypatch.setenv("THAW_DATA_ROOTS", str(shared_images()))
    return place_run(trained_run(), "parent")


@pytest.mark.train
def test_a_run_is_chosen_as_the_start_and_its_backbone_follows(parent, data_id_of, device_is_taken):
    at = open_page(
        "configure",
        data=data_id_of(parent.config.data),
        state={"more_settings": True, "networks_open": True},
    )
    at.selectbox(key="weights_from").set_value("An earlier run").run()
    assert at.selectbox(key="weights_run").value == str(parent.run_dir)
    assert at.selectbox(key="form_backbone").value == parent.config.backbone
    assert at.number_input(key="form_image_size").value == parent.config.image_size
    assert f"Starts from {parent.run_id}" in unescaped_text(at)
    again = open_page("configure", **address(at))
    assert again.selectbox(key="weights_run").value == str(parent.run_dir)
    press(again, "Start training")
    runs = RunStore(paths.runs_dir()).list_runs()
    [child] = [run for run in runs if run.run_id != parent.run_id]
    assert child.config.from_run == str(parent.run_dir)
    assert (child.run_dir / "start.safetensors").exists()


@pytest.mark.train
def test_another_backbone_and_no_run_at_all_are_refused_in_words(parent, data_id_of, tmp_path):
    def opened():
        at = open_page(
            "configure",
            data=data_id_of(parent.config.data),
            state={"more_settings": True, "networks_open": True},
        )
        return at.selectbox(key="weights_from").set_value("An earlier run").run()

    at = opened()
    at.selectbox(key="form_backbone").set_value("resnet18").run()
    assert "follows from the run to start from" in page_text(at)
    at = opened()
    parent.run_dir.rename(tmp_path / "gone")
    at.run()
    assert "Earlier run there is no run in" in page_text(at)
    assert button(at, "Start training").disabled


@pytest.mark.train
def test_pages_say_what_a_run_started_from(parent):
    child = train(
        tiny_config(from_run=str(parent.run_dir), backbone=parent.config.backbone, epochs=1),
        paths.runs_dir(),
    )
    for page in ("train", "evaluate"):
        shown = unescaped_text(open_page(page, run=child.run_id))
        assert f"Started from run {parent.run_id} (" in shown
        assert f"on {shared_images().name}, best epoch " in shown
        assert "Its head was kept." in shown
    table = open_page("runs").dataframe[0].value.set_index("Run")
    assert dict(table["Started from"]) == {child.run_id: parent.run_id, parent.run_id: ""}
