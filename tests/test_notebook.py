"""The notebook in docs, run in its own kernel as a person would run it."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "docs" / "notebook.ipynb"


class Watching(NotebookClient):
    """A notebook client that records drawings over earlier output of a cell."""

    def process_message(self, message, cell, index):
        if message["msg_type"] == "update_display_data":
            self.redrawn.append(message["content"]["data"]["text/plain"])
        return super().process_message(message, cell, index)


def output_of(notebook, code):
    """Return the HTML output of the cell with this code as one text."""
    [cell] = [cell for cell in notebook.cells if cell.cell_type == "code" and code in cell.source]
    return "".join(output.get("data", {}).get("text/html", "") for output in cell.outputs)


@pytest.mark.processes
def test_every_cell_shows_its_result_and_bars_move_in_place_and_are_gone(home, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    client = Watching(nbformat.read(FILE, as_version=4), timeout=600, kernel_name="python3")
    client.redrawn = []
    notebook = client.execute()
    assert "1,797 images in 10 classes" in output_of(notebook, "thaw.inspect")
    trained = output_of(notebook, "thaw.train")
    assert trained.count("epoch 2/2") == 2
    assert "<b>" in trained
    assert "Strategies" in output_of(notebook, "thaw.compare")
    assert "Matthews" in output_of(notebook, "thaw.evaluate")
    assert "p(9)" in output_of(notebook, "thaw.predict")
    assert "onnxruntime" in output_of(notebook, "thaw.export")
    assert any("Training" in one and "loss" in one for one in client.redrawn)
    assert client.redrawn[-1] == ""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if "━" in str(output)]
    # Without ipywidgets, tqdm warns when a library imports it. Thaw's own bars do not need it.
    streams = [output.text for output in outputs if output.output_type == "stream"]
    assert all("tqdm" in text for text in streams)


def test_the_notebook_is_kept_without_outputs():
    cells = [cell for cell in nbformat.read(FILE, as_version=4).cells if cell.cell_type == "code"]
    assert {(len(cell.outputs), cell.execution_count) for cell in cells} == {(0, None)}
