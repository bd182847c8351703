"""Links below a run directory are not followed when exports are written, deleted or packed."""

import dataclasses
import io
import os
import shutil
import stat
import zipfile

import pytest

from finetune_core.errors import ExportError
from finetune_core.exporters.formats import export_path, export_run, find_export, zip_folder


@pytest.fixture
def run_and_stranger(run, tmp_path):
    """A copy of the run, and a directory of another user beside it."""
    folder = tmp_path / "runs" / run.run_id
    shutil.copytree(run.run_dir, folder, ignore=shutil.ignore_patterns("export"))
    theirs = tmp_path / "theirs"
    (theirs / "card").mkdir(parents=True)
    (theirs / "thesis.txt").write_text("years of work")
    (theirs / "card" / "thesis.txt").write_text("years of work")
    return dataclasses.replace(run, run_dir=folder), theirs


def is_untouched(theirs):
    found = sorted(str(one.relative_to(theirs)) for one in theirs.rglob("*"))
    return found == ["card", "card/thesis.txt", "thesis.txt"]


@pytest.mark.parametrize("linked", ["export", "export/card"])
def test_an_export_through_a_link_is_refused_and_deletes_nothing(run_and_stranger, linked):
    run, theirs = run_and_stranger
    link = run.run_dir / linked
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(theirs)
    with pytest.raises(ExportError, match="is a link"):
        export_run(run, "card")
    assert is_untouched(theirs)
    assert find_export(run, "card") is None


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_permissions_are_not_changed_through_a_link_in_the_place_of_a_new_export(
    run_and_stranger, tmp_path, monkeypatch
):
    run, theirs = run_and_stranger
    theirs.chmod(0o700)
    (tmp_path / "out").mkdir(mode=0o755)

    def swap(_, made):
        made.rmdir()
        made.symlink_to(theirs)

    monkeypatch.setattr("finetune_core.exporters.card.write_card", swap)
    with pytest.raises(ExportError, match="cannot be written"):
        export_run(run, "card", tmp_path / "out")
    assert stat.S_IMODE(theirs.stat().st_mode) == 0o700
    assert is_untouched(theirs)


def test_a_file_in_the_place_of_an_export_is_replaced(run_and_stranger):
    run, _ = run_and_stranger
    export_path(run, "card").parent.mkdir()
    export_path(run, "card").write_text("no folder")
    assert find_export(run, "card") is None
    assert export_run(run, "card").files == ("README.md",)


def test_files_that_links_in_an_export_lead_to_are_not_packed(run_and_stranger):
    run, theirs = run_and_stranger
    made = export_run(run, "card")
    (made.folder / "notes.txt").symlink_to(theirs / "thesis.txt")
    (made.folder / "more").symlink_to(theirs)
    with zipfile.ZipFile(io.BytesIO(zip_folder(find_export(run, "card"), "card"))) as archive:
        assert archive.namelist() == ["card/README.md"]
