"""Export buttons of the page: export on a click, ZIP download, error messages."""

import io
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import psutil
import pytest
from streamlit.testing.v1 import AppTest

from finetune_core.errors import ExportError
from finetune_core.exporters import formats
from finetune_core.exporters.apart import export_in_subprocess
from finetune_core.work import Step, finish
from pages.shared.jobs import jobs

ROOT = Path(__file__).parents[2]


def page(run_dir):
    from pathlib import Path

    from finetune_core.runs.store import RunStore
    from pages.shared.evaluation.export import draw_export_buttons

    draw_export_buttons(RunStore(Path(run_dir).parent).load_run(Path(run_dir)))


@pytest.fixture
def click(run):
    """A function that opens the page, clicks a format, and returns the page after the export."""
    shutil.rmtree(run.run_dir / "export", ignore_errors=True)
    at = AppTest.from_function(page, args=(str(run.run_dir),), default_timeout=300).run()
    assert not at.exception
    assert not at.get("download_button")

    def click_and_wait(format):
        at.button(key=f"export-{run.run_id}-{format}").click().run()
        for job in jobs().list_running():
            job.wait()
        at.run()
        assert not at.exception
        return at

    return click_and_wait


@pytest.mark.train
def test_a_click_makes_it_and_offers_the_zip(run, click):
    buttons = click("card").get("download_button")
    assert [button.proto.label for button in buttons] == ["Download ZIP"]
    folder = formats.find_export(run, "card")
    with zipfile.ZipFile(io.BytesIO(formats.zip_folder(folder, "mine"))) as archive:
        assert archive.namelist() == ["mine/README.md"]


def test_what_goes_wrong_is_said_on_the_page(click, monkeypatch):
    def fail(*_, **__):
        yield Step(0, None, "export")
        raise ExportError("Cannot *be* made.")

    monkeypatch.setattr(formats, "export_in_steps", fail)
    assert [error.value for error in click("script").error] == [r"Cannot \*be\* made\."]


def test_graphs_are_made_in_another_process_and_no_other_format(run, monkeypatch):
    monkeypatch.setattr(
        formats, "export_in_subprocess", lambda _, format, *__: iter([Step(1, 1, format)])
    )
    phases = {
        name: {step.phase for step in formats.export_from_app(run, name, [])}
        for name in formats.FORMATS
    }
    assert {name for name in phases if name in phases[name]} == {"onnx", "torch_export"}


@pytest.mark.processes
def test_another_process_exports_or_says_what_is_wrong(run, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    steps = list(export_in_subprocess(run, "safetensors"))
    assert steps[-1] == Step(6, 6, "measure")
    assert (formats.find_export(run, "safetensors") / "model.safetensors").is_file()
    (run.run_dir / "best.safetensors").rename(run.run_dir / "hidden")
    try:
        assert formats.find_export(run, "safetensors") is None
        with pytest.raises(ExportError, match="has no 'best' checkpoint"):
            list(export_in_subprocess(run, "safetensors"))
    finally:
        (run.run_dir / "hidden").rename(run.run_dir / "best.safetensors")


@pytest.mark.processes
def test_an_export_that_is_stopped_ends_its_process_and_leaves_nothing(run, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shutil.rmtree(run.run_dir / "export", ignore_errors=True)
    steps = export_in_subprocess(run, "onnx")
    assert next(steps).phase == "export"
    steps.close()  # returns once the process has ended
    assert not any((run.run_dir / "export").iterdir())


PARENT = """
import sys
from pathlib import Path
from finetune_core.exporters.apart import export_in_subprocess
from finetune_core.runs.store import RunStore

run = Path(sys.argv[1])
for step in export_in_subprocess(RunStore(run.parent).load_run(run), "onnx"):
    print(step, flush=True)
    sys.stdin.read()
"""


@pytest.mark.processes
@pytest.mark.skipif(os.name != "posix", reason="no such signal")
def test_an_export_ends_with_the_app_and_the_next_one_clears_up(run, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, run.run_dir],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert parent.stdout.readline()
    (child,) = psutil.Process(parent.pid).children()
    parent.kill()
    parent.communicate()
    child.wait(300)
    (left,) = (run.run_dir / "export").glob(".thaw-export-*")
    os.utime(left, (time.time() - 120,) * 2)
    finish(formats.export_in_steps(run, "card"))
    assert not list((run.run_dir / "export").glob(".thaw-*"))
    assert formats.find_export(run, "onnx") is None


def test_what_lies_beside_a_new_export_stays(run, tmp_path):
    for name in (".export-mybackup", ".thaw-export-mybackup"):
        (tmp_path / name / "lock").mkdir(parents=True)
        os.utime(tmp_path / name, (0, 0))
    formats.export_run(run, "card", tmp_path / "card")
    assert sorted(os.listdir(tmp_path)) == [".export-mybackup", ".thaw-export-mybackup", "card"]
