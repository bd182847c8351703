"""The page's buttons: made on a click, handed over as a ZIP, said in words where it cannot be."""

import io
import shutil
import zipfile

import pytest
from streamlit.testing.v1 import AppTest

from finetune_core.errors import ExportError
from finetune_core.exporters import formats
from finetune_core.work import Step
from pages.shared.jobs import jobs


def page(run_dir):
    from pathlib import Path

    from finetune_core.runs.store import RunStore
    from pages.shared.evaluation.export import export_buttons

    export_buttons(RunStore(Path(run_dir).parent).read(Path(run_dir)))


@pytest.fixture
def opened(run):
    shutil.rmtree(run.run_dir / "export", ignore_errors=True)
    at = AppTest.from_function(page, args=(str(run.run_dir),), default_timeout=300)
    at.run()
    assert not at.exception
    return at


def clicked(at, key):
    """The page once what the click began has ended."""
    at.button(key=key).click().run()
    for job in jobs().all():
        job.wait()
    at.run()
    assert not at.exception
    return at


def test_a_click_makes_it_and_offers_the_zip(run, opened):
    key = f"export-{run.run_id}-card"
    assert not opened.get("download_button")
    clicked(opened, key)
    assert [button.proto.label for button in opened.get("download_button")] == ["Download ZIP"]
    folder = formats.finished_export(run, "card")
    with zipfile.ZipFile(io.BytesIO(formats.zipped(folder, "mine"))) as archive:
        assert archive.namelist() == ["mine/README.md"]


def test_what_goes_wrong_is_said_on_the_page(run, opened, monkeypatch):
    def fail(*_, **__):
        yield Step(0, None, "export")
        raise ExportError("Cannot *be* made.")

    monkeypatch.setattr(formats, "exporting", fail)
    clicked(opened, f"export-{run.run_id}-script")
    assert [error.value for error in opened.error] == [r"Cannot \*be\* made\."]


@pytest.mark.slow
def test_graphs_are_made_in_another_process_that_says_what_is_wrong(run, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    steps = list(formats.export_from_app(run, "torch_export", []))
    assert steps[0].phase == "export"
    assert steps[-1] == Step(6, 6, "measure")
    assert (formats.finished_export(run, "torch_export") / "model.pt2").is_file()
    (run.run_dir / "best.safetensors").rename(run.run_dir / "hidden")
    try:
        assert formats.finished_export(run, "torch_export") is None
        with pytest.raises(ExportError, match="has no 'best' checkpoint"):
            list(formats.export_from_app(run, "torch_export", []))
    finally:
        (run.run_dir / "hidden").rename(run.run_dir / "best.safetensors")


@pytest.mark.slow
def test_an_export_that_is_stopped_ends_its_process_and_leaves_nothing(run, opened, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    steps = formats.export_from_app(run, "onnx", [])
    assert next(steps).phase == "export"
    steps.close()  # returns once the process has ended
    assert not any((run.run_dir / "export").iterdir())
