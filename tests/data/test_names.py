import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_core.data.names import escape_name, is_noise, safe_path
from finetune_core.errors import DataError

quick = settings(deadline=None, derandomize=True, database=None, max_examples=100)


def test_leftovers_of_systems_are_noise_and_what_people_keep_is_not():
    noise = [".DS_Store", "._cat.jpg", ".git", "__MACOSX", "Thumbs.db", "desktop.ini"]
    kept = ["cat.jpg", "_MACOSX", "Thumbs", "a.b", "desktop.ini.png"]
    assert [name for name in (*noise, *kept) if is_noise(name)] == noise


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("cat/1.jpg", ("cat", "1.jpg")),
        ("1.jpg", ("1.jpg",)),
        ("./cat//1.jpg", ("cat", "1.jpg")),
        ("cat/./1.jpg", ("cat", "1.jpg")),
        ("cat/", ("cat",)),
        ("cat\\1.jpg", ("cat", "1.jpg")),
        (".", ()),
        ("./", ()),
        ("…/..jpg", ("…", "..jpg")),
        ("Käse 日本 🦦/it's <b>.jpg", ("Käse 日本 🦦", "it's <b>.jpg")),
        ("12:30/at 7:00.jpg", ("12:30", "at 7:00.jpg")),
        ("a" * 251 + ".jpg", ("a" * 251 + ".jpg",)),
        ("a/b/c/1.jpg", ("a", "b", "c", "1.jpg")),
    ],
)
def test_a_harmless_name_is_taken_apart(name, parts):
    assert safe_path(name, 3) == parts


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "is no name"),
        ("/cat.jpg", "absolute"),
        ("//server/share/cat.jpg", "absolute"),
        ("\\cat.jpg", "absolute"),
        ("\\\\server\\share\\cat.jpg", "absolute"),
        ("\\\\?\\C:\\cat.jpg", "absolute"),
        ("..", "leads out"),
        ("../cat.jpg", "leads out"),
        ("a/../../cat.jpg", "leads out"),
        ("a/..", "leads out"),
        ("a/../b.jpg", "leads out"),  # although it would come back
        ("..\\cat.jpg", "leads out"),
        ("a\\..\\..\\cat.jpg", "leads out"),
        ("a/.. /cat.jpg", "leads out"),
        ("C:cat.jpg", "names a drive"),
        ("C:/cat.jpg", "names a drive"),
        ("c:\\cat.jpg", "names a drive"),
        ("a/C:/cat.jpg", "names a drive"),
        ("cat.jpg\0.txt", "control characters"),
        ("\0", "control characters"),
        ("a\nb.jpg", "control characters"),
        ("a\x1b[2Jb.jpg", "control characters"),
        ("a\x7fb.jpg", "control characters"),
        ("a\x85b.jpg", "control characters"),
        ("a\u2028b.jpg", "control characters"),
        ("caf\udce9.jpg", "not valid Unicode"),
        ("\ud83e.jpg", "not valid Unicode"),
        ("a" * 252 + ".jpg", "255 bytes"),
        ("日" * 84 + ".jpg", "255 bytes"),  # 88 letters
        ("a/b/c/d/1.jpg", "more than 3 folders"),
        ("/".join(["a" * 255] * 4), "1000 bytes"),
    ],
)
def test_a_name_that_could_lead_elsewhere_is_refused(name, why):
    with pytest.raises(DataError, match=why) as refused:
        safe_path(name, 3)
    assert len(str(refused.value).splitlines()) == 1
    assert str(refused.value).isprintable()


def test_a_shown_name_is_short_printable_and_on_one_line():
    assert escape_name("cat 日本.jpg") == "cat 日本.jpg"
    assert escape_name("a\nb\u202e\ud800") == "a\\nb\\u202e\\ud800"
    assert escape_name("x" * 40 + "y" * 1000 + "z" * 40) == "x" * 40 + "…" + "z" * 40


LETTERS = st.characters() | st.characters(categories=["Cs", "Cc"]) | st.sampled_from("/\\.:aC")


@quick
@given(st.text(LETTERS, max_size=30))
def test_any_name_is_refused_or_stays_below_its_folder(tmp_path_factory, name):
    try:
        parts = safe_path(name, 4)
    except DataError:
        return
    folder = tmp_path_factory.getbasetemp()
    assert folder.joinpath(*parts).resolve().is_relative_to(folder.resolve())
    assert not {"", ".", ".."} & set(parts)
    assert not any(separator in part for part in parts for separator in "/\\\0")
