"""A new export format needs an entry in ``FORMATS`` and the code that writes and loads it."""

import json
import runpy
from pathlib import Path

import pytest
from typer.testing import CliRunner

import finetune_core as thaw
from finetune_core.exporters.catalogue import FORMATS, Format
from finetune_core.work import Step
from tests.factories import trained_run

ROOT = Path(__file__).resolve().parents[2]
PREDICT = ROOT / "finetune_core" / "exporters" / "standalone" / "predict.py"


def write_listing(source, folder):
    (folder / "classes.txt").write_text("\n".join(source.classes))
    return {}


def write_network(source, folder):
    yield Step(0, None, "export")
    (folder / "model.txt").write_text("weights")
    return {}, None


@pytest.fixture(autouse=True)
def two_more_formats(monkeypatch):
    listing = Format("Listing", "The classes.", f"{__name__}:write_listing")
    network = Format(
        "Text",
        "The network.",
        f"{__name__}:write_network",
        file="model.txt",
        usage="`model.txt` takes {size} pixels.",
    )
    monkeypatch.setitem(FORMATS, "listing", listing)
    monkeypatch.setitem(FORMATS, "text", network)


def test_api_and_command_line_offer_a_new_entry(tmp_path):
    run = trained_run()
    made = thaw.export(run, "listing", tmp_path / "api")
    assert (made.folder / "classes.txt").read_text().split() == ["blue", "green", "red"]
    app = runpy.run_path(str(ROOT / "finetune_core" / "__main__.py"))["app"]
    invoke = CliRunner().invoke
    help_text = invoke(app, ["export", "--help"], env={"COLUMNS": "300"}).stdout
    assert f"{', '.join(FORMATS)}." in help_text
    arguments = [run.run_dir, "--format", "listing", "--output", tmp_path / "cli", "--json"]
    done = invoke(app, ["export", *map(str, arguments)])
    assert json.loads(done.stdout)["files"] == ["classes.txt"]


def test_a_new_entry_with_a_network_comes_with_a_card_and_an_example(tmp_path):
    made = thaw.export(trained_run(), "text", tmp_path / "out")
    assert made.files == ("README.md", "model.txt", "predict.py")
    assert (
        "`model.txt` takes 32 pixels. Neither needs Thaw."
        in (made.folder / "README.md").read_text()
    )


def test_every_entry_has_what_the_other_places_show(monkeypatch):
    monkeypatch.undo()
    guide = (ROOT / "docs" / "guide.md").read_text().partition("## Export")[2].lower()
    for name, form in FORMATS.items():
        assert callable(form.load_writer())
        assert bool(form.usage) == form.has_network
        assert f"``{name}``" in thaw.export.__doc__
        assert name.replace("_", ".") in guide
    loaders = runpy.run_path(str(PREDICT))["LOADERS"]
    assert set(loaders) == {form.file for form in FORMATS.values() if form.has_network}
