"""Browsing never leaves the readable folders, and is quick in large ones."""

import pytest

from finetune_core.data import browse
from finetune_core.data.browse import view_folder
from finetune_core.errors import DataError


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def fill(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def below(view):
    return {one.name: (one.images, one.counted) for one in view.subfolders}


def test_a_folder_tells_its_subfolders_and_how_many_images_they_hold(root):
    fill(root / "Pets" / "cat", "1.jpg", "2.PNG", "notes.txt", ".hidden.jpg")
    fill(root / "Pets" / "dog", "3.webp")
    fill(root / "empty")
    fill(root / ".cache", "4.png")
    fill(root / "__MACOSX", "5.png")
    fill(root, "loose.jpeg", "table.csv")
    view = view_folder(root, [root])
    assert view.images == 1
    assert below(view) == {"empty": (0, True), "Pets": (3, True)}
    assert [one.name for one in view.subfolders] == ["empty", "Pets"]
    assert below(view_folder(view.subfolders[1].path, [root])) == {
        "cat": (2, True),
        "dog": (1, True),
    }


def test_the_way_up_ends_at_the_readable_folder(root):
    fill(root / "a" / "b")
    assert view_folder(root / "a" / "b", [root]).up == root / "a"
    assert view_folder(root / "a", [root]).up == root
    assert view_folder(root, [root]).up is None


@pytest.mark.parametrize("way", ["..", "out", "a/../../elsewhere"])
def test_nothing_outside_the_readable_folders_is_opened(root, tmp_path, way):
    fill(tmp_path / "elsewhere", "1.png")
    fill(root / "a")
    (root / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="THAW_DATA_ROOTS"):
        view_folder(root / way, [root])


def test_a_link_that_leads_outside_is_not_offered_and_one_inside_is_where_it_leads(root, tmp_path):
    fill(tmp_path / "elsewhere", "1.png")
    fill(root / "deep" / "pets", "1.png", "2.png")
    (root / "out").symlink_to(tmp_path / "elsewhere")
    (root / "short").symlink_to(root / "deep" / "pets")
    (root / "loop").symlink_to("loop")
    view = view_folder(root, [root])
    assert below(view) == {"deep": (2, True), "short": (2, True)}
    assert view.subfolders[1].path == root / "deep" / "pets"
    assert view_folder(view.subfolders[1].path, [root]).up == root / "deep"


def test_links_below_are_not_counted(root, tmp_path):
    fill(tmp_path / "elsewhere", "1.png", "2.png")
    fill(root / "pets", "1.png")
    (root / "pets" / "more").symlink_to(tmp_path / "elsewhere")
    (root / "pets" / "again").symlink_to(root)
    assert below(view_folder(root, [root])) == {"pets": (1, True)}


def test_a_folder_of_thousands_is_listed_whole_and_counted_in_part(root, monkeypatch):
    for number in range(1000):
        (root / f"{number:04}").mkdir()
    fill(root / "0000", *(f"{number}.png" for number in range(30)))
    monkeypatch.setattr(browse, "_MAX_ENTRIES_BELOW", 20)
    monkeypatch.setattr(browse, "_MAX_ENTRIES", 25)
    fill(root / "0001", *(f"{number}.png" for number in range(4)))
    fill(root / "0002", *(f"{number}.png" for number in range(4)))
    view = view_folder(root, [root])
    assert len(view.subfolders) == 1000
    assert list(below(view).items())[:3] == [
        ("0000", (20, False)),
        ("0001", (4, True)),
        ("0002", (1, False)),
    ]


def test_a_folder_that_is_gone_is_said(root):
    with pytest.raises(DataError, match="cannot be read"):
        view_folder(root / "gone", [root])
