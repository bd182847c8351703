"""The label command: the images to label, in order, as text and as JSON."""

import shutil

import pytest

from finetune_core.config import Edit
from finetune_core.data.edits import add_edits, load_edits
from finetune_core.labelling import session
from tests.command_line import thaw, thaw_json
from tests.factories import image_folder
from tests.labelling.stand_in import draw_features


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "compute_features", draw_features)
    return image_folder(tmp_path / "data", {"red": 12, "green": 12})


def test_a_folder_is_added_once_and_its_images_are_listed_until_they_are_labelled(data, tmp_path):
    loose = image_folder(tmp_path / "loose", {"any": 12})
    first = thaw_json("label", data, "--add", loose, "--most", 5)
    assert (first["labelled"], first["waiting"], len(first["queue"])) == (0, 12, 5)
    assert first["classes"] == ["green", "red"]
    asked = first["queue"][0]
    assert asked.keys() == {"id", "split", "proposal", "share"}
    assert asked["proposal"] in first["classes"]
    add_edits(data, [Edit(action="label", paths=(asked["id"],), to="red")])
    second = thaw_json("label", data)
    assert (second["labelled"], second["waiting"]) == (1, 11)
    assert asked["id"] not in [one["id"] for one in second["queue"]]
    assert "11 images to label, 1 labelled." in thaw("label", data).stdout


def test_an_archive_is_unpacked_and_its_images_are_listed(data, tmp_path):
    image_folder(tmp_path / "loose", {"any": 12})
    archive = shutil.make_archive(str(tmp_path / "loose"), "zip", tmp_path / "loose")
    assert thaw_json("label", data, "--add", archive)["waiting"] == 12


def test_a_script_answers_what_is_listed(data, tmp_path):
    loose = image_folder(tmp_path / "loose", {"any": 12})
    queue = thaw_json("label", data, "--add", loose)["queue"]
    answers = tmp_path / "answers.csv"
    paths = [asked["id"] for asked in queue[:3]]
    answers.write_text(f"path,label,action\n{paths[0]},blue,\n{paths[1]},,skip\n{paths[2]},,none\n")
    after = thaw_json("label", data, "--answer", answers)
    counts = [after[name] for name in ("labelled", "waiting", "skipped", "none_of_these")]
    assert counts == [1, 9, 1, 1]
    assert after["classes"] == ["green", "red", "blue"]
    assert not {*paths} & {asked["id"] for asked in after["queue"]}
    assert (load_edits(data)[0].action, load_edits(data)[0].to) == ("label", "blue")
    answers.write_text(f"path,label\n{paths[0]},red\n{data / 'red' / '000.png'},red\n")
    wrong = thaw("label", data, "--answer", answers)
    assert (wrong.returncode, "not in the queue" in wrong.words) == (2, True)
    assert thaw_json("label", data) == after


def test_what_cannot_be_listed_is_said(data, tmp_path):
    assert "Add a folder" in thaw("label", data).words
    assert "There is no folder" in thaw("label", data, "--add", tmp_path / "gone").words
    image_folder(tmp_path / "loose", {"any": 4})
    wrong = thaw("label", data, "--add", tmp_path / "loose", "--order", "probable", "--of", "cat")
    assert wrong.returncode == 2
    assert "Label one of it first" in wrong.words
