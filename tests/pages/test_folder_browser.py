"""The folder browser of the Dataset page, and what a person may paste into the field beside it."""

import os

import pytest

from finetune_core import paths
from tests.pages.harness import ANN, open_page, words


@pytest.fixture
def folder(image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("THAW_DATA_ROOTS", str(tmp_path / "pictures"))
    (tmp_path / "elsewhere").mkdir()
    image_folder(tmp_path / "pictures" / "deep" / "my pets", {"red": 14, "blue": 14})
    (tmp_path / "pictures" / "out").symlink_to(tmp_path / "elsewhere")
    return tmp_path / "pictures" / "deep" / "my pets"


def down(at, name):
    box = next(one for one in at.selectbox if one.label == "Open a subfolder")
    box.select_index([option.split(" · ")[0] for option in box.options].index(name)).run()
    assert not at.exception


def offered(at):
    return next((one.options for one in at.selectbox if one.label == "Open a subfolder"), [])


def images(at):
    return {metric.label: metric.value for metric in at.metric}.get("Images")


def test_folders_are_walked_down_and_up_and_one_is_used(folder):
    at = open_page("dataset")
    assert offered(at) == ["deep · 28 images"]
    assert at.button(key="browse-up").disabled
    down(at, "deep")
    down(at, "my pets")
    assert offered(at) == ["blue · 14 images", "red · 14 images"]
    down(at, "red")
    at.button(key="browse-up").click().run()
    at.button(key="browse-take").click().run()
    assert not at.exception
    assert images(at) == "28"


def test_several_readable_folders_can_be_chosen_from(folder, tmp_path, monkeypatch):
    (tmp_path / "more" / "birds").mkdir(parents=True)
    monkeypatch.setenv(
        "THAW_DATA_ROOTS", os.pathsep.join([str(folder.parent), str(tmp_path / "more")])
    )
    at = open_page("dataset")
    assert offered(at) == ["birds · 0 images"]
    at.button(key=f"browse-root-{folder.parent}").click().run()
    assert offered(at) == ["my pets · 28 images"]


def test_a_folder_that_may_not_be_read_any_more_is_said_and_left(folder, tmp_path):
    at = open_page("dataset")
    at.session_state["browse_at"] = str(tmp_path / "elsewhere")
    at.run()
    assert "outside the folders that Thaw may read" in words(at)
    at.run()
    assert offered(at) == ["deep · 28 images"]


@pytest.mark.parametrize(("user", "names"), [(None, ["pets"]), (ANN, [])])
def test_where_people_sign_in_nobody_is_shown_what_others_have_uploaded(
    image_folder, monkeypatch, user, names
):
    image_folder(paths.data_dir() / "pets", {"red": 2, "blue": 2})
    monkeypatch.setenv("THAW_DATA_ROOTS", str(paths.home()))  # which holds the uploads
    at = open_page("dataset", user=user)
    assert f"browse-root-{paths.data_dir()}" not in [one.key for one in at.button] or user is None
    folders = [option.split(" · ")[0] for option in offered(at)]
    assert (paths.data_dir().name in folders) == (user is None)
    at.session_state["browse_at"] = str(paths.data_dir())
    at.run()
    assert [option.split(" · ")[0] for option in offered(at)] == names
    assert ("not shown to people who sign in" in words(at)) == (user is not None)


@pytest.mark.parametrize("written", ["'{}'", '"{}"', "file://{}"])
def test_a_pasted_path_is_understood(folder, written):
    at = open_page("dataset")
    at.text_input(key="data_folder").set_value(
        written.format(str(folder).replace(" ", "%20" if "file" in written else " "))
    ).run()
    assert not at.exception
    assert images(at) == "28"
