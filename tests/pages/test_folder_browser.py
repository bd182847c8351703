"""Folder browser of the Dataset page, and the text field beside it."""

import os
import shutil

import pytest

from finetune_core import paths
from finetune_core.data.recent import data_id, list_recent_sources, remember_source
from finetune_core.errors import DataError
from finetune_core.work import finish
from pages.shared.configure import settings
from pages.shared.evaluation import other_data
from tests.factories import image_folder
from tests.pages.harness import ANN, BEN, open_page, page_text, read_facts


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("THAW_DATA_ROOTS", str(tmp_path / "pictures"))
    (tmp_path / "elsewhere").mkdir()
    image_folder(tmp_path / "pictures" / "deep" / "my pets", {"red": 14, "blue": 14})
    (tmp_path / "pictures" / "out").symlink_to(tmp_path / "elsewhere")
    return tmp_path / "pictures" / "deep" / "my pets"


def down(at, name):
    box = next(one for one in at.selectbox if one.label == "Open a subfolder")
    box.select_index([option.split(" · ")[0] for option in box.options].index(name)).run()


def offered(at):
    return next((one.options for one in at.selectbox if one.label == "Open a subfolder"), [])


def images(at):
    return read_facts(at).partition(" ")[0]


@pytest.mark.train
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
    assert "outside the folders that Thaw may read" in page_text(at)
    at.run()
    assert offered(at) == ["deep · 28 images"]


@pytest.mark.parametrize(("user", "names"), [(None, ["pets"]), (ANN, [])])
def test_where_people_sign_in_nobody_is_shown_what_others_have_uploaded(monkeypatch, user, names):
    image_folder(paths.data_dir() / "pets", {"red": 2, "blue": 2})
    monkeypatch.setenv("THAW_DATA_ROOTS", str(paths.home()))  # which holds the uploads
    at = open_page("dataset", user=user)
    assert f"browse-root-{paths.data_dir()}" not in [one.key for one in at.button] or user is None
    folders = [option.split(" · ")[0] for option in offered(at)]
    assert (paths.data_dir().name in folders) == (user is None)
    at.session_state["browse_at"] = str(paths.data_dir())
    at.run()
    assert [option.split(" · ")[0] for option in offered(at)] == names
    assert ("not shown to people who sign in" in page_text(at)) == (user is not None)


@pytest.fixture
def uploads():
    """Upload data sets of two people; return the chosen data by name of the person."""
    made = {}
    for user in (ANN, BEN):
        name = user["email"].split("@")[0]
        made[name] = image_folder(paths.data_dir() / f"{name}-0123abcd", {"red": 14, "blue": 14})
        remember_source(made[name], user["email"])
    return made


@pytest.fixture
def readable(folder, monkeypatch):
    """Let the pages read the folder of all uploads, and a second folder, which is returned."""
    roots = os.pathsep.join([str(folder.parent), str(paths.home())])
    monkeypatch.setenv("THAW_DATA_ROOTS", roots)
    return folder.parent


def test_where_people_sign_in_nobody_types_the_path_of_anothers_upload(uploads, readable):
    ann, ben = uploads["ann"], uploads["ben"]
    (readable / "link").symlink_to(ann)
    at = open_page("dataset", user=BEN)
    for named in (
        ann,
        ann / "red",
        f"file://{ann}",
        readable / "link",
        ann.parent,
        paths.home(),
        f"{ben}/../{ann.name}",
    ):
        at.text_input(key="data_folder").set_value(str(named)).run()
        assert "not shown to people who sign in" in page_text(at), named
        assert not images(at)


def test_what_one_person_brings_does_not_lead_into_anothers_upload(uploads, readable):
    manifest, links = uploads["ben"] / "theirs.csv", readable / "mine"
    rows = [f"{file},{file.parent.name}" for file in sorted(uploads["ann"].rglob("*.png"))]
    manifest.write_text("\n".join(["path,label", *rows]))
    links.mkdir()
    for name in ("red", "blue"):
        (links / name).symlink_to(uploads["ann"] / name)
    for named in (manifest, links):
        at = open_page("dataset", user=BEN)
        at.text_input(key="data_folder").set_value(str(named)).run()
        assert at.error
        assert not images(at)


def test_where_people_sign_in_an_address_opens_ones_own_upload_only(uploads):
    named = data_id(uploads["ann"])
    assert images(open_page("dataset", user=ANN, data=named)) == "28"
    for page in ("dataset", "configure"):
        at = open_page(page, user=BEN, data=named)
        assert "not shown to people who sign in" in page_text(at)
        assert not images(at)
    sources = list_recent_sources([paths.data_dir()], 9, ANN["email"])
    people = {source.path: source.people for source in sources}
    assert people[str(uploads["ann"])] == (ANN["email"],)


def test_where_people_sign_in_no_run_predicts_anothers_upload(uploads):
    work = other_data._predict([], str(uploads["ann"]), [paths.data_dir()], BEN["email"])
    with pytest.raises(DataError, match="not shown to people who sign in"):
        finish(work)


def test_where_people_sign_in_weights_are_not_taken_from_anothers_upload(uploads, data_id_of):
    weights = uploads["ann"] / "w.safetensors"
    weights.touch()
    named = {"weights_from": settings.FILE_OF_WEIGHTS, "weights_file": str(weights)}
    at = open_page("configure", user=BEN, state=named, data=data_id_of(uploads["ben"]))
    assert "not shown to people who sign in" in page_text(at)


def test_an_archive_on_the_server_belongs_to_who_opens_it(folder, wait_until_finished):
    packed = shutil.make_archive(str(folder.parent / "pets"), "zip", folder)
    at = open_page("dataset", user=BEN)
    at.text_input(key="data_folder").set_value(packed).run()
    wait_until_finished(at)
    assert images(at) == "28"


def test_a_pasted_path_is_understood(folder):
    for written in (f"'{folder}'", f'"{folder}"', "file://" + str(folder).replace(" ", "%20")):
        at = open_page("dataset")
        at.text_input(key="data_folder").set_value(written).run()
        assert images(at) == "28"


def test_a_folder_that_is_not_there_or_may_not_be_read_is_said(folder, tmp_path):
    for named, said in (
        (folder / "nowhere", "There is no folder"),
        (tmp_path / "elsewhere", "outside the folders that Thaw may read"),
    ):
        at = open_page("dataset")
        at.text_input(key="data_folder").set_value(str(named)).run()
        assert said in page_text(at)
        assert not at.metric
