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
from finetune_core.data.manifest import is_manifest, other_columns, read_manifest
from finetune_core.errors import DataError

quick = settings(deadline=None, derandomize=True, database=None, max_examples=200)


@pytest.fixture
def write(tmp_path):
    """Write a manifest from text, bytes or a table; returns its path."""

    def written(content, name="images.csv"):
        file = tmp_path / name
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif isinstance(content, str):
            file.write_text(content, encoding="utf-8")
        else:
            content.to_parquet(file)
        return file

    return written


def rows(file):
    return [tuple(row) for row in read_manifest(file).to_numpy().tolist()]


def refused(file):
    with pytest.raises(DataError) as caught:
        read_manifest(file)
    return str(caught.value)


def test_paths_labels_splits_and_groups(write):
    file = write("path,label,split,group\na.png,cat,train,p1\nb.png,dog,val,\n")
    assert rows(file) == [("a.png", "cat", "train", "p1"), ("b.png", "dog", "val", "")]


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
    assert f"has {len(names):,} columns; a manifest has at most 1,000" in refused(file)
    with pytest.raises(DataError, match="columns; a manifest has at most"):
        other_columns(file)


def test_splits_and_groups_may_be_left_out(write):
    assert rows(write("label,path\ncat,a.png\n")) == [("a.png", "cat", "", "")]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", " "])
def test_what_parts_the_columns_of_a_csv_is_found(write, separator):
    text = "path,label,split\na.png,cat,train\n".replace(",", separator)
    assert rows(write(text)) == [("a.png", "cat", "train", "")]


def test_spaces_in_a_heading_part_no_columns_where_something_else_does(write):
    assert rows(write("path|label|image quality\na.png|cat|good\n")) == [("a.png", "cat", "", "")]


def test_a_heading_of_one_column_is_named_whole(write):
    assert "none for label among: path." in refused(write("path\na.png\n"))


def test_tabs_part_the_columns_of_a_tsv_whatever_else_is_in_it(write):
    assert rows(write("path\tlabel\na, b; c.png\tcat\n", "images.tsv")) == [
        ("a, b; c.png", "cat", "", "")
    ]


def test_quotes_commas_and_marks_of_byte_order(write):
    text = '\ufeffpath,label\r\n"a, ""b"".png","cat, or dog"\r\n'
    assert rows(write(text)) == [('a, "b".png', "cat, or dog", "", "")]


@pytest.mark.parametrize("label", ["NA", "null", "nan", "None", "007", "1.0", "True"])
def test_labels_stay_as_they_are_written(write, label):
    assert rows(write(f"path,label\na.png,{label}\n"))[0][1] == label


@pytest.mark.parametrize(
    "path", ["path", "File", "FILENAME", "file_name", "filepath", "image", "id", " path "]
)
@pytest.mark.parametrize("label", ["label", "Class", "class_name", "TARGET", "category"])
def test_what_people_call_the_columns(write, path, label):
    assert rows(write(f"{label},width,{path}\ncat,640,a.png\n")) == [("a.png", "cat", "", "")]


@pytest.mark.parametrize("column", ["split", "Set", "subset"])
@pytest.mark.parametrize(
    ("word", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("val", "val"),
        ("valid", "val"),
        ("VALIDATION", "val"),
        ("test", "test"),
        ("", ""),
    ],
)
def test_what_people_call_the_splits(write, column, word, split):
    assert rows(write(f"path,label,{column}\na.png,cat,{word}\n")) == [("a.png", "cat", split, "")]


@pytest.mark.parametrize(
    "given",
    [
        "red/a.png",
        "./red/a.png",
        "red//a.png",
        "blue/../red/a.png",
        r"red\a.png",
        r".\red\a.png",
        "../here/red/a.png",
    ],
)
def test_ways_to_write_one_path(tmp_path, given):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "m.csv").write_text(f"path,label\n{given},red\n")
    assert rows(tmp_path / "here" / "m.csv")[0][0] == "red/a.png"


def test_absolute_paths_are_relative_where_they_lie_in_the_folder(write, tmp_path):
    assert rows(write(f"path,label\n{tmp_path}/red/a.png,red\n"))[0][0] == "red/a.png"


def test_paths_out_of_the_folder_are_absolute(write, tmp_path):
    outside = (tmp_path.parent / "a.png").as_posix()
    assert rows(write("path,label\n../a.png,red\n"))[0][0] == outside
    assert rows(write(f"path,label\n{outside},red\n"))[0][0] == outside


@pytest.mark.parametrize(
    "labels", [[3, 1], [3.0, None], pd.array([3, 1], "Int64"), pd.Categorical(["3", "1"])]
)
def test_labels_of_any_type_in_parquet(write, labels):
    table = pd.DataFrame({"path": ["a.png", "b.png"], "label": labels})
    if table["label"].isna().any():
        assert "without a label: 3" in refused(write(table, "images.parquet"))
        table = table.head(1)
    assert rows(write(table, "images.parquet"))[0] == ("a.png", "3", "", "")


@pytest.mark.parametrize("label", [0.5, 1e300, float("inf"), True])
def test_odd_labels_in_parquet_are_words(write, label):
    assert rows(write(pd.DataFrame({"path": ["a.png"], "label": [label]}), "images.parquet"))[0][
        1
    ] == str(label)


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
    assert other_columns(file).index.tolist() == ["a.png", "b.png"]
    assert other_columns(file)["boxes"].map(type).eq(str).all()


@pytest.mark.parametrize("what", NESTED)
@pytest.mark.parametrize("column", ["image", "label", "split"])
def test_lists_and_records_for_a_path_label_or_split_are_refused(tmp_path, what, column):
    file = tmp_path / "images.parquet"
    texts = {name: pyarrow.array(["train", "val"]) for name in ("image", "label", "split")}
    pyarrow.parquet.write_table(pyarrow.table(texts | {column: NESTED[what]}), file)
    assert f"images.parquet holds lists or records in {column};" in refused(file)


@pytest.mark.fuzz
@pytest.mark.parametrize("column", ["path", "label", "group"])
def test_a_name_of_fifty_megabytes_is_refused_in_a_line(write, column):
    table = pd.DataFrame({"path": ["a.png", "b.png"], "label": "cat", "group": "one"})
    table.loc[1, column] = "x" * 50_000_000
    message = refused(write(table, "images.parquet"))
    assert "more than 32,767 characters: 3" in message
    assert len(message) < 300


def test_numbers_of_groups_with_gaps_in_parquet(write):
    table = pd.DataFrame(
        {"path": ["a.png", "b.png"], "label": ["cat", "cat"], "group": [7.0, None]}
    )
    assert [row[3] for row in rows(write(table, "images.parquet"))] == ["7", ""]


def test_paths_that_pandas_kept_as_the_index(write):
    table = pd.DataFrame({"label": ["cat"]}, index=pd.Index(["a.png"], name="path"))
    assert rows(write(table, "images.parquet")) == [("a.png", "cat", "", "")]


def test_an_image_given_twice_alike_counts_once(write):
    assert rows(write("path,label\na.png,cat\n./a.png,cat\n")) == [("a.png", "cat", "", "")]


@pytest.mark.parametrize("second", ["./a.png,dog,train", "a.png,cat,val"])
def test_an_image_given_twice_and_not_alike_is_refused(write, second):
    assert "different labels or splits: 2, 4" in refused(
        write(f"path,label,split\na.png,cat,train\nb.png,cat,train\n{second}\n")
    )


def test_all_problems_are_said_at_once_with_their_rows(write):
    text = "path,label,split\na.png,,train\n,cat,train\nb.png,cat,holdout\nc.png,cat,train\nc.png,dog,train\n"
    message = refused(write(text))
    assert "without a path: 3" in message
    assert "without a label: 2" in message
    assert "split other than train, val or test: 4" in message
    assert "twice, with different labels or splits: 5, 6" in message


def test_many_rows_with_one_problem_are_counted(write):
    assert "without a label: 2, 3, 4, 5, 6 and 7 more (" in refused(
        write("path,label\n" + "".join(f"{n}.png,\n" for n in range(12)))
    )


@pytest.mark.parametrize("blank", ["", ","])
def test_blank_rows_are_passed_over_but_count(write, blank):
    assert "without a label: 5" in refused(
        write(f"path,label\na.png,cat\n{blank}\n{blank}\nb.png,\n")
    )
    assert rows(write(f"path,label\na.png,cat\n{blank}\n")) == [("a.png", "cat", "", "")]


def test_missing_columns_are_named_and_those_that_are_there(write):
    message = refused(write("picture,width\na.png,3\n"))
    assert "none for path and label among: picture, width" in message
    assert "none for label among" in refused(write("path,width\na.png,3\n"))


@pytest.mark.parametrize("text", ["path,label\n", "path,label\n\n\n", "path,label\n,\n"])
def test_a_table_without_rows(write, text):
    assert "has no rows" in refused(write(text))


def test_rows_with_more_values_than_the_heading_are_not_guessed_at(write):
    assert "more values than the heading" in refused(
        write("path,label\na,1.png,cat\nb,2.png,dog\n")
    )
    assert "cannot be read as a table" in refused(write("path,label\na.png,cat\nb,2.png,dog\n"))


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
@pytest.mark.parametrize("name", ["images.csv", "images.tsv", "images.parquet"])
def test_what_is_no_table_is_refused_in_a_line_or_two(write, what, name):
    message = refused(write(NO_TABLES[what], name))
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
    assert "cannot be read as a table" in refused(file)


@pytest.mark.parametrize("name", ["a\0b.png", "\0"])
def test_a_zero_byte_in_a_path_is_refused(write, name):
    table = pd.DataFrame({"path": ["a.png", name], "label": ["cat", "cat"]})
    assert "zero byte: 3" in refused(write(table, "images.parquet"))


def test_manifests_are_known_by_their_names(tmp_path):
    names = {
        "a.csv": True,
        "a.CSV": True,
        "a.tsv": True,
        "a.parquet": True,
        "a.txt": False,
        "csv": False,
    }
    assert {name: is_manifest(tmp_path / name) for name in names} == names


def test_missing_files_are_named(image_folder, tmp_path):
    image_folder(tmp_path, {"x": 8})
    (tmp_path / "m.csv").write_text(
        "path,label\n"
        + "".join(f"x/00{n}.png,{'ab'[n % 2]}\n" for n in range(8))
        + "x/gone.png,a\n"
    )
    dataset = load_dataset(tmp_path / "m.csv")
    assert len(dataset.table) == 8
    found = next(one for one in dataset.findings if one.kind == "missing_file")
    assert (found.paths, found.severity) == (("x/gone.png",), "error")


def test_files_outside_the_roots_are_noted_by_whatever_way(image_folder, tmp_path):
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


@pytest.mark.parametrize("name", ["again.csv", "again.parquet"])
@pytest.mark.parametrize("layout", ["{}", "train/{}"])
def test_a_data_set_written_out_as_a_manifest_is_the_same_data_set(
    image_folder, tmp_path, name, layout
):
    image_folder(tmp_path, {layout.format(one): 6 for one in NAMES})
    moved, relabelled, gone = (layout.format(f"plain/00{n}.png") for n in range(3))
    edits = (
        Edit(action="move", paths=(moved,), to="test"),
        Edit(action="relabel", paths=(relabelled,), to="new, class"),
        Edit(action="exclude", paths=(gone,)),
    )
    first = load_dataset(tmp_path, groups="{group}.png", edits=edits)
    manifest = first.manifest()
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


WORDS = st.one_of(
    st.sampled_from(
        [
            "path",
            "label",
            "split",
            "group",
            "a.png",
            "cat",
            "train",
            "val",
            "",
            " ",
            "..",
            "/",
            "\\",
            "~",
            '"',
            "\0",
        ]
    ),
    st.text(st.characters(codec="utf-8"), max_size=6),
)
TABLES = st.lists(st.lists(WORDS, min_size=1, max_size=4), max_size=6)
HEADINGS = st.sampled_from(
    [["path", "label"], ["path", "label", "split"], ["label", "image", "group"], ["path"], []]
)


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
    assert other_columns(file)["camera"].tolist() == [
        str(number) for _ in range(2) for number in range(20)
    ]
    assert len(calls) == 80
