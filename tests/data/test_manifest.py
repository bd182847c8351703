import os
from contextlib import suppress

import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from finetune_core.config import Edit
from finetune_core.data.dataset import load_dataset
from finetune_core.data.listing import list_data
from finetune_core.data.manifest import is_manifest, read_manifest, read_other_columns
from finetune_core.errors import DataError
from tests.factories import image_folder

quick = settings(deadline=None, derandomize=True, database=None, max_examples=100)


@pytest.fixture
def write(tmp_path):
    """Write a manifest from text, bytes or a table, and return its path."""

    def write_manifest(content, name="images.csv"):
        file = tmp_path / name
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif isinstance(content, str):
            file.write_text(content, encoding="utf-8")
        else:
            content.to_parquet(file)
        return file

    return write_manifest


def rows(file):
    return [tuple(row) for row in read_manifest(file).to_numpy().tolist()]


def get_refusal(file):
    with pytest.raises(DataError) as caught:
        read_manifest(file)
    return str(caught.value)


CAT = ("a.png", "cat", "", "")
PATHS = ["path", "File", "FILENAME", "file_name", "filepath", "image", "id", " path "]
LABELS = ["label", "Class", "class_name", "TARGET", "category"]
WORDS_OF_SPLITS = {"Training": "train", "valid": "val", "VALIDATION": "val", "test": "test", "": ""}
# Text -> rows that are read from it.
READ = {
    "path,label,split,group\na.png,cat,train,p1\nb.png,dog,val,\n": [
        ("a.png", "cat", "train", "p1"),
        ("b.png", "dog", "val", ""),
    ],
    "label,path\ncat,a.png\n": [CAT],
    **{
        "path,label,split\na.png,cat,train\n".replace(",", part): [("a.png", "cat", "train", "")]
        for part in ",;\t| "
    },
    "path|label|image quality\na.png|cat|good\n": [CAT],  # spaces that part no columns
    '\ufeffpath,label\r\n"a, ""b"".png","cat, or dog"\r\n': [('a, "b".png', "cat, or dog", "", "")],
    **{
        f"path,label\na.png,{label}\n": [("a.png", label, "", "")]
        for label in ("NA", "null", "nan", "None", "007", "1.0", "True")
    },
    **{f"label,width,{path}\ncat,640,a.png\n": [CAT] for path in PATHS},
    **{f"{label},width,path\ncat,640,a.png\n": [CAT] for label in LABELS},
    **{
        f"path,label,{column}\na.png,cat,{word}\n": [("a.png", "cat", split, "")]
        for column in ("split", "Set", "subset")
        for word, split in WORDS_OF_SPLITS.items()
    },
    "path,label\na.png,cat\n./a.png,cat\n": [CAT],  # given twice alike
    "path,label\na.png,cat\n\n,\n": [CAT],
}
TWICE = "path,label,split\na.png,cat,train\nb.png,cat,train\n"
MANY = "path,label,split\na.png,,train\n,cat,train\nb.png,cat,holdout\nc.png,cat,train\n"
# Text -> what is said against it.
REFUSED = {
    "path\na.png\n": ["none for label among: path."],
    "picture,width\na.png,3\n": ["none for path and label among: picture, width"],
    "path,width\na.png,3\n": ["none for label among"],
    f"{TWICE}./a.png,dog,train\n": ["different labels or splits: 2, 4"],
    f"{TWICE}a.png,cat,val\n": ["different labels or splits: 2, 4"],
    f"{MANY}c.png,dog,train\n": [
        "without a path: 3",
        "without a label: 2",
        "split other than train, val or test: 4",
        "twice, with different labels or splits: 5, 6",
    ],
    "path,label\n" + "".join(f"{n}.png,\n" for n in range(12)): [
        "without a label: 2, 3, 4, 5, 6 and 7 more ("
    ],
    "path,label\na.png,cat\n\n\nb.png,\n": ["without a label: 5"],  # blank rows count
    "path,label\na.png,cat\n,\n,\nb.png,\n": ["without a label: 5"],
    **{f"path,label\n{more}": ["has no rows"] for more in ("", "\n\n", ",\n")},
    "path,label\na,1.png,cat\nb,2.png,dog\n": ["more values than the heading"],
    "path,label\na.png,cat\nb,2.png,dog\n": ["cannot be read as a table"],
}


@pytest.mark.parametrize(("text", "expected"), READ.items())
def test_manifest_in_text_is_read_as_it_is_written(write, text, expected):
    assert rows(write(text)) == expected


@pytest.mark.parametrize(("text", "reasons"), REFUSED.items())
def test_manifest_with_problems_is_refused_with_all_of_them(write, text, reasons):
    message = get_refusal(write(text))
    assert [reason for reason in reasons if reason not in message] == []


def test_tabs_part_the_columns_of_a_tsv_whatever_else_is_in_it(write):
    file = write("path\tlabel\na, b; c.png\tcat\n", "images.tsv")
    assert rows(file) == [("a, b; c.png", "cat", "", "")]


@pytest.mark.parametrize("name", ["images.csv", "images.tsv", "images.parquet"])
def test_a_table_of_far_too_many_columns_is_refused_before_it_is_read(write, name, monkeypatch):
    def read(*_, **__):
        raise AssertionError("the table was read")

    for reader in ("pandas.read_csv", "pyarrow.parquet.read_table"):
        monkeypatch.setattr(reader, read)
    names = ["path", "label", *(["x"] * 60_000 if "parquet" not in name else map(str, range(1000)))]
    if "parquet" in name:
        file = write(pd.DataFrame([["a"] * len(names)], columns=names), name)
    else:
        separator = "\t" if "tsv" in name else ","
        file = write(separator.join(names) + "\n" + separator.join("a" * len(names)) + "\n", name)
    assert f"has {len(names):,} columns; a manifest has at most 1,000" in get_refusal(file)
    with pytest.raises(DataError, match="columns; a manifest has at most"):
        read_other_columns(file)


def test_ways_to_write_one_path_are_one_path(tmp_path):
    (tmp_path / "here").mkdir()
    ways = ["red/a.png", "./red/a.png", "red//a.png", "blue/../red/a.png", r"red\a.png"]
    for way in [*ways, r".\red\a.png", "../here/red/a.png", f"{tmp_path}/here/red/a.png"]:
        (tmp_path / "here" / "m.csv").write_text(f"path,label\n{way},red\n")
        assert rows(tmp_path / "here" / "m.csv")[0][0] == "red/a.png"


def test_paths_out_of_the_folder_are_absolute(write, tmp_path):
    outside = (tmp_path.parent / "a.png").as_posix()
    assert rows(write("path,label\n../a.png,red\n"))[0][0] == outside
    assert rows(write(f"path,label\n{outside},red\n"))[0][0] == outside


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"label": [3, 1]}, "3"),
        ({"label": pd.array([3, 1], "Int64")}, "3"),
        ({"label": pd.Categorical(["3", "1"])}, "3"),
        *(({"label": [label, label]}, str(label)) for label in (0.5, 1e300, float("inf"), True)),
    ],
)
def test_labels_of_any_type_in_parquet_are_words(write, table, expected):
    table = pd.DataFrame({"path": ["a.png", "b.png"], **table})
    assert rows(write(table, "images.parquet"))[0] == ("a.png", expected, "", "")


def test_gaps_and_the_index_of_a_parquet_table_are_read(write):
    table = pd.DataFrame({"path": ["a.png", "b.png"], "label": "cat", "group": [7.0, None]})
    assert [row[3] for row in rows(write(table, "images.parquet"))] == ["7", ""]
    missing = table.assign(label=[3.0, None])
    assert "without a label: 3" in get_refusal(write(missing, "images.parquet"))
    zero = table.assign(path=["a.png", "a\0b.png"])
    assert "zero byte: 3" in get_refusal(write(zero, "images.parquet"))
    index = pd.DataFrame({"label": ["cat"]}, index=pd.Index(["a.png"], name="path"))
    assert rows(write(index, "images.parquet")) == [CAT]


NESTED = {
    "lists": pyarrow.array([["a", "b"], None]),
    "records": pyarrow.array([{"path": "a.png", "bytes": b"x"}] * 2),
    "maps": pyarrow.array([[("k", 1)], []], pyarrow.map_(pyarrow.string(), pyarrow.int32())),
}


@pytest.mark.parametrize("what", NESTED)
def test_lists_and_records_beside_paths_and_labels_are_text(tmp_path, what):
    file = tmp_path / "images.parquet"
    table = {
        "path": pyarrow.array(["a.png", "b.png"]),
        "label": pyarrow.array(["cat", "dog"]),
        "boxes": NESTED[what],
    }
    pyarrow.parquet.write_table(pyarrow.table(table), file)
    assert [row[:2] for row in rows(file)] == [("a.png", "cat"), ("b.png", "dog")]
    assert read_other_columns(file).index.tolist() == ["a.png", "b.png"]
    assert read_other_columns(file)["boxes"].map(type).eq(str).all()


@pytest.mark.parametrize("column", ["image", "label", "split"])
def test_lists_and_records_for_a_path_label_or_split_are_refused(tmp_path, column):
    file = tmp_path / "images.parquet"
    texts = {name: pyarrow.array(["train", "val"]) for name in ("image", "label", "split")}
    for nested in NESTED.values():
        pyarrow.parquet.write_table(pyarrow.table(texts | {column: nested}), file)
        assert f"images.parquet holds lists or records in {column};" in get_refusal(file)


@pytest.mark.fuzz
@pytest.mark.parametrize("column", ["path", "label", "group"])
def test_a_name_of_fifty_megabytes_is_refused_in_a_line(write, column):
    table = pd.DataFrame({"path": ["a.png", "b.png"], "label": "cat", "group": "one"})
    table.loc[1, column] = "x" * 50_000_000
    message = get_refusal(write(table, "images.parquet"))
    assert "more than 32,767 characters: 3" in message
    assert len(message) < 300


NO_TABLES = {
    "nothing": b"",
    "blank lines": b"\n\n\n",
    "Latin-1": "path,label\ncafé.png,cat\n".encode("latin-1"),
    "UTF-16": "path,label\na.png,cat\n".encode("utf-16"),
    "an image": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4,
    "a zip": b"PK\x03\x04" + bytes(500),
    "an open quote": b'path,label\n"a.png,cat\n',
}


@pytest.mark.parametrize("what", NO_TABLES)
def test_content_that_is_no_table_is_refused_in_a_line(write, what):
    for name in ("images.csv", "images.tsv", "images.parquet"):
        message = get_refusal(write(NO_TABLES[what], name))
        assert name in message
        assert len(message.splitlines()) == 1
        assert len(message) < 500


def test_text_in_parquet_that_is_not_unicode_is_refused(write, tmp_path):
    offsets = pyarrow.py_buffer((0).to_bytes(4, "little") + (2).to_bytes(4, "little"))
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, offsets, pyarrow.py_buffer(b"\xff\xfe")]
    )
    file = tmp_path / "images.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({"path": pyarrow.array(["a.png"]), "label": broken}), file
    )
    assert "cannot be read as a table" in get_refusal(file)


def test_missing_files_are_named_and_manifests_known_by_their_names(tmp_path):
    image_folder(tmp_path, {"x": 8})
    lines = [f"x/00{n}.png,{'ab'[n % 2]}" for n in range(8)]
    (tmp_path / "m.csv").write_text("\n".join(["path,label", *lines, "x/gone.png,a"]))
    dataset = load_dataset(tmp_path / "m.csv")
    assert len(dataset.table) == 8
    found = next(one for one in dataset.findings if one.kind == "missing_file")
    assert (found.paths, found.severity) == (("x/gone.png",), "error")
    names = ["a.csv", "a.CSV", "a.tsv", "a.parquet", "a.txt", "csv"]
    assert [name for name in names if is_manifest(tmp_path / name)] == names[:4]


def test_files_outside_the_roots_are_noted_by_whatever_way(tmp_path):
    image_folder(tmp_path, {"in": 1, "out": 2})
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "out" / "000.png")
    text = f"path,label\n000.png,a\n../out/000.png,a\n{tmp_path}/out/001.png,a\nlink.png,a\n"
    (tmp_path / "in" / "m.csv").write_text(text)
    listing = list_data(tmp_path / "in" / "m.csv", roots=[tmp_path / "in"])
    assert listing.files["id"].tolist() == ["000.png"]
    assert {kind for kind, _ in listing.notes} == {"outside"}
    assert len(listing.notes) == 3
    assert len(list_data(tmp_path / "in" / "m.csv").files) == 4


def test_nothing_within_the_roots(write, tmp_path):
    with pytest.raises(
        DataError, match=r"None of the images that images\.csv names lies in a folder"
    ):
        list_data(write("path,label\n../a.png,a\n"), roots=[tmp_path])


NAMES = ["plain", "a, b", 'double"quote', "NA", "007", "otter 🦦", "semi;colon", "'single'"]
if os.name != "posix":
    NAMES.remove('double"quote')


@pytest.mark.parametrize(("name", "layout"), [("again.csv", "{}"), ("again.parquet", "train/{}")])
def test_a_data_set_written_out_as_a_manifest_is_the_same_data_set(tmp_path, name, layout):
    image_folder(tmp_path, {layout.format(one): 4 for one in NAMES})
    moved, relabelled, gone = (layout.format(f"plain/00{n}.png") for n in range(3))
    edits = (
        Edit(action="move", paths=(moved,), to="test"),
        Edit(action="relabel", paths=(relabelled,), to="new, class"),
        Edit(action="exclude", paths=(gone,)),
    )
    first = load_dataset(tmp_path, groups="{group}.png", edits=edits)
    manifest = first.to_manifest()
    manifest.to_csv(tmp_path / name, index=False) if name.endswith("csv") else manifest.to_parquet(
        tmp_path / name
    )
    second = load_dataset(tmp_path / name)
    columns = ["id", "class", "split", "group", "label"]
    pd.testing.assert_frame_equal(first.table[columns], second.table[columns], check_dtype=False)
    assert second.classes == first.classes
    assert "new, class" in second.classes
    assert second.given_splits
    assert second.fingerprint == first.fingerprint
    splits = second.table.set_index("id")["split"]
    assert splits[moved] == "test"
    assert gone not in splits


KNOWN = ["path", "label", "split", "group", "a.png", "cat", "train", "val", "", " ", "..", "/"]
WORDS = st.one_of(
    st.sampled_from([*KNOWN, "\\", "~", '"', "\0"]),
    st.text(st.characters(codec="utf-8"), max_size=6),
)
TABLES = st.lists(st.lists(WORDS, min_size=1, max_size=4), max_size=6)
HEADINGS = st.sampled_from(
    [["path", "label"], ["path", "label", "split"], ["label", "image", "group"], ["path"], []]
)


@pytest.mark.fuzz
@quick
@given(
    HEADINGS, TABLES, st.sampled_from([",", ";", "\t", " "]), st.sampled_from(["m.csv", "m.tsv"])
)
@example([], [], ",", "m.csv")
def test_any_table_of_text_is_read_or_refused(tmp_path_factory, heading, table, separator, name):
    text = "\n".join(separator.join(row) for row in [heading, *table])
    file = tmp_path_factory.getbasetemp() / name
    file.write_bytes(text.encode())
    with suppress(DataError):
        listing = list_data(file)
        assert listing.files["id"].is_unique
        assert (listing.files[["id", "class"]] != "").all(axis=None)
        assert set(listing.files["split"]) <= {"", "train", "val", "test"}


CELLS = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.booleans(),
    st.binary(max_size=4),
    WORDS,
)


@pytest.mark.fuzz
@quick
@given(st.lists(st.tuples(CELLS, CELLS), max_size=4), st.sampled_from(["split", "group", "more"]))
def test_any_parquet_table_is_read_or_refused(tmp_path_factory, cells, third):
    file = tmp_path_factory.getbasetemp() / "m.parquet"
    paths, labels = ([pair[place] for pair in cells] for place in (0, 1))
    try:
        table = pyarrow.table({"path": paths, "label": labels, third: labels})
    except (pyarrow.ArrowException, TypeError, OverflowError):
        return  # mixed types are no column
    pyarrow.parquet.write_table(table, file)
    with suppress(DataError):
        read = read_manifest(file)
        assert (read[["id", "class"]] != "").all(axis=None)


def test_each_name_is_looked_at_once_however_often_a_manifest_gives_it(tmp_path, monkeypatch):
    file = tmp_path / "manifest.csv"
    rows = [
        f"{name}/{number}.png,{name},train,{number}"
        for name in ("red", "blue")
        for number in range(20)
    ]
    file.write_text("path,label,split,camera\n" + "\n".join(rows * 50))
    calls, really = [], os.path.normpath
    monkeypatch.setattr(
        "finetune_core.data.manifest.os.path.normpath",
        lambda path: calls.append(path) or really(path),
    )
    table = read_manifest(file)
    assert (len(table), len(calls)) == (40, 40)
    assert read_other_columns(file)["camera"].tolist() == [
        str(number) for _ in range(2) for number in range(20)
    ]
    assert len(calls) == 80
