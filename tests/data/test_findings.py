import io
import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from finetune_core.config import Edit
from finetune_core.data.checks import class_findings, copy_findings, some
from finetune_core.data.dataset import load_dataset
from finetune_core.data.edits import apply_edits
from finetune_core.data.findings import KINDS, Finding, unanswered

quick = settings(deadline=None, derandomize=True, database=None, max_examples=60)
CLEAN = {"train/red": 12, "train/blue": 12, "val/red": 3, "val/blue": 3}
FROM_FEATURES = {"shift", "label_errors", "outliers"}  # see inspection


def picture(size=(40, 32), low=40, high=215):
    return Image.fromarray(
        np.random.default_rng(5).integers(low, high, (size[1], size[0], 3), np.uint8)
    )


def cut_short():
    buffer = io.BytesIO()
    picture((200, 200)).save(buffer, "JPEG")
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


def copied(folder, source, target):
    shutil.copy(folder / source, folder / target)


def darkened(folder, source, target):
    with Image.open(folder / source) as image:
        image.point(lambda value: value * 0.9).save(folder / target)


def emptied(folder, *names):
    for name in names:
        shutil.rmtree(folder / name)


def made(folder):
    folder.mkdir()
    return folder


def added(folder, image_folder, layout):
    image_folder(folder, layout)


def pale(size):
    return picture(size, 226, 256)


def sloped():
    return Image.fromarray(np.tile(np.linspace(30, 220, 40, dtype=np.uint8), (32, 1))).convert(
        "RGB"
    )


NEW = "train/red/new.png"
# Kind -> what is done to a clean folder, how grave that is, and the paths or classes that are named.
PLANTED = {
    "unreadable": (lambda f: (f / NEW).write_text("words"), "error", [NEW]),
    "damaged": (
        lambda f: (f / "train/red/new.jpg").write_bytes(cut_short()),
        "error",
        ["train/red/new.jpg"],
    ),
    "empty_file": (lambda f: (f / NEW).touch(), "error", [NEW]),
    "missing_file": (lambda f: (f / NEW).symlink_to(f / "gone.png"), "error", [NEW]),
    "outside": (lambda f: (f / NEW).symlink_to(f.parent / "elsewhere.png"), "error", [NEW]),
    "bad_name": (
        lambda f: copied(f, "train/red/000.png", os.fsdecode(b"train/red/caf\xe9.png")),
        "error",
        [r"train/red/caf\udce9.png"],
    ),
    "no_class": (
        lambda f: copied(f, "train/red/000.png", "train/loose.png"),
        "warning",
        ["train/loose.png"],
    ),
    "empty_class": (lambda f: (f / "train/green").mkdir(), "warning", ["train/green"]),
    "ignored_folder": (lambda f: shutil.copytree(f / "train", f / "extra"), "warning", ["extra"]),
    "not_an_image": (lambda f: (f / "train/red/list.txt").touch(), "info", ["train/red/list.txt"]),
    "wrong_extension": (
        lambda f: picture().save(f / "train/red/new.jpg", "PNG"),
        "info",
        ["train/red/new.jpg"],
    ),
    "animated": (
        lambda f: picture().save(
            f / "train/red/new.gif", save_all=True, append_images=[pale((40, 32))]
        ),
        "warning",
        ["train/red/new.gif"],
    ),
    "extreme_aspect": (lambda f: picture((140, 40)).save(f / NEW), "warning", [NEW]),
    "tiny": (lambda f: picture((40, 31)).save(f / NEW), "warning", [NEW]),
    "over_large": (
        lambda f: picture().resize((5100, 5000)).save(f / "train/red/new.jpg"),
        "info",
        ["train/red/new.jpg"],
    ),
    "odd_mode": (
        lambda f: picture().convert("CMYK").save(f / "train/red/new.jpg"),
        "info",
        ["train/red/new.jpg"],
    ),
    "uniform": (
        lambda f: Image.new("RGB", (40, 32), (99, 120, 60)).save(f / NEW),
        "warning",
        [NEW],
    ),
    "dark": (lambda f: picture(low=0, high=35).save(f / NEW), "warning", [NEW]),
    "bright": (lambda f: pale((40, 32)).save(f / NEW), "warning", [NEW]),
    "blurry": (lambda f: sloped().save(f / NEW), "warning", [NEW]),
    "conflicting_labels": (
        lambda f: copied(f, "train/red/000.png", "train/blue/new.png"),
        "error",
        ["train/blue/new.png", "train/red/000.png"],
    ),
    "leakage": (
        lambda f: copied(f, "train/red/000.png", "val/red/new.png"),
        "error",
        ["train/red/000.png"],
    ),
    "near_leakage": (
        lambda f: darkened(f, "train/red/000.png", "val/red/new.png"),
        "warning",
        ["val/red/new.png"],
    ),
    "exact_duplicates": (lambda f: copied(f, "train/red/000.png", NEW), "warning", [NEW]),
    "near_duplicates": (lambda f: darkened(f, "train/red/000.png", NEW), "info", [NEW]),
    "single_class": (lambda f: emptied(f, "train/red", "val/red"), "error", ["blue"]),
    "class_not_trained": (lambda f: emptied(f, "train/red"), "warning", ["red"]),
    "class_not_validated": (lambda f: emptied(f, "val/red"), "warning", ["red"]),
    "class_not_tested": (
        lambda f: (f / "val/red").rename(made(f / "test") / "red"),
        "warning",
        ["blue"],
    ),
    "few_images": (
        lambda f: [(f / f"train/red/00{n}.png").unlink() for n in range(3)],
        "warning",
        ["red"],
    ),
    "imbalance": (
        lambda f: [(f / f"train/red/{n:03d}.png").unlink() for n in range(1, 12)],
        "warning",
        ["blue", "red"],
    ),
    "similar_class_names": (
        lambda f: (f / "val/red").rename(f / "val/Reds"),
        "warning",
        ["Reds", "red"],
    ),
}
OF_CLASSES = {
    "single_class",
    "class_not_trained",
    "class_not_validated",
    "class_not_tested",
    "few_images",
    "imbalance",
    "similar_class_names",
}


@pytest.fixture
def folder(image_folder, tmp_path):
    return image_folder(tmp_path / "pets", CLEAN)


@pytest.fixture
def elsewhere(tmp_path):
    picture().save(tmp_path / "elsewhere.png")


def found(dataset, kind):
    return next((one for one in dataset.findings if one.kind == kind), None)


def inspected(folder, **settings):
    return load_dataset(folder, roots=[folder], **settings)


def test_a_clean_folder_has_no_findings(folder):
    assert inspected(folder).findings == ()


def test_every_kind_is_planted_here_or_found_from_features():
    assert set(PLANTED) | FROM_FEATURES == set(KINDS)
    assert all(kind.title and kind.why for kind in KINDS.values())


GUESSED = {
    "near_leakage",
    "near_duplicates",
    "similar_class_names",
    "dark",
    "bright",
    "blurry",
    "shift",
    "label_errors",
    "outliers",
}


def test_for_every_kind_it_is_decided_whether_it_is_measured_or_a_guess():
    assert {kind for kind, one in KINDS.items() if one.guess} == GUESSED
    assert {kind for kind, one in KINDS.items() if one.ranked} <= GUESSED
    assert all("Possibl" in KINDS[kind].title for kind in GUESSED - {"shift"})


@pytest.mark.parametrize("kind", sorted(GUESSED & set(PLANTED)))
def test_a_guess_is_no_error_and_has_no_action_on_all(folder, kind):
    PLANTED[kind][0](folder)
    finding = found(inspected(folder), kind)
    assert finding.severity in ("warning", "info")
    assert not finding.bulk
    assert finding.to_json()["guess"]


@pytest.mark.parametrize(
    "kind", ["leakage", "conflicting_labels", "exact_duplicates", "animated", "tiny", "uniform"]
)
def test_what_is_measured_keeps_its_action_on_all(folder, kind):
    PLANTED[kind][0](folder)
    finding = found(inspected(folder), kind)
    assert finding.bulk
    assert not finding.to_json()["guess"]


@pytest.mark.parametrize("kind", PLANTED)
def test_what_is_planted_is_found_and_said_in_json(folder, elsewhere, kind):
    plant, severity, expected = PLANTED[kind]
    if os.name != "posix" and kind in ("bad_name", "missing_file", "outside"):
        pytest.skip("elsewhere names are always Unicode, and links need rights")
    plant(folder)
    finding = found(inspected(folder), kind)
    assert finding.severity == severity
    assert finding.count == len(expected)
    assert sorted(finding.classes if kind in OF_CLASSES else finding.paths) == expected
    assert finding.message.endswith(".")
    said = json.loads(json.dumps(finding.to_json()))
    assert (said["kind"], said["severity"], said["count"], said["message"]) == (
        kind,
        severity,
        len(expected),
        finding.message,
    )
    assert (said["paths"], said["classes"], said["to"]) == (
        list(finding.paths),
        list(finding.classes),
        dict(finding.to),
    )
    assert (said["why"], said["action"]) == (KINDS[kind].why, KINDS[kind].action)


@pytest.mark.parametrize("kind", [kind for kind in PLANTED if KINDS[kind].action])
def test_the_action_of_a_finding_removes_it(folder, kind):
    PLANTED[kind][0](folder)
    finding = found(inspected(folder), kind)
    edits = finding.edits(finding.paths)
    assert {edit.kind for edit in edits} == {kind}
    after = inspected(folder, edits=edits)
    assert found(after, kind) is None
    assert {one.kind for one in after.findings if one.severity == "error"} == set()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not KINDS[kind].action])
def test_other_findings_offer_no_edits(kind):
    assert Finding(kind, "warning", "Look.", 1, ("a",)).edits(("a",)) == ()


def test_some_of_the_images_of_a_finding_can_be_edited():
    to = {"a": "cat", "b": "dog", "c": "cat"}
    finding = Finding("label_errors", "warning", "Wrong.", 3, ("a", "b", "c"), to=to)
    assert finding.edits(["c", "b"]) == (
        Edit(action="relabel", paths=("c",), to="cat", kind="label_errors"),
        Edit(action="relabel", paths=("b",), to="dog", kind="label_errors"),
    )
    assert finding.edits([]) == ()
    assert Finding("dark", "warning", "Dark.", 2, ("a", "b")).edits(["b"]) == (
        Edit(action="exclude", paths=("b",), kind="dark"),
    )


def test_ignored_findings_are_answered_until_something_is_added():
    dark, two = (
        Finding("dark", "warning", "Dark.", 1, ("a",)),
        Finding("dark", "warning", "Dark.", 2, ("a", "b")),
    )
    few = Finding("few_images", "warning", "Few.", 1, classes=("cat",))
    edits = [
        Edit(action="ignore", paths=("a",), kind="dark"),
        Edit(action="ignore", paths=("cat",), kind="few_images"),
    ]
    assert unanswered([dark, few], edits) == []
    assert unanswered([two, few], edits) == [two]
    assert unanswered([dark, few], []) == [dark, few]
    assert unanswered([Finding("bright", "warning", "Bright.", 1, ("a",))], edits) != []


def rows(*given):
    """id, class, split, letter of the content, number of the near set."""
    table = pd.DataFrame(given, columns=["id", "class", "split", "content", "near"])
    table["content"] = table["content"].map(ord)
    table["label"] = pd.factorize(table["class"], sort=True)[0]
    return table.assign(closeness=1.0)


def copies(table):
    return {finding.kind: finding for finding in copy_findings(table)}


def test_leakage_names_the_split_whose_score_is_inflated():
    table = rows(
        ("a", "x", "train", "A", 0),
        ("b", "x", "val", "A", 0),
        ("c", "x", "val", "C", 1),
        ("d", "x", "test", "D", 2),
        ("e", "x", "test", "E", 3),
        ("f", "x", "test", "F", 4),
    )
    finding = copies(table)["leakage"]
    assert "1 image copied across splits" in finding.message
    assert (
        "1 image of validation: its accuracy can come out up to 50.0 % too high" in finding.message
    )
    assert "of test" not in finding.message
    assert (finding.paths, finding.sets) == (("a",), (("a", "b"),))
    assert finding.notes == {"a": "Training", "b": "Validation"}


def test_a_leak_between_validation_and_test_inflates_the_test():
    finding = copies(
        rows(("a", "x", "val", "A", 0), ("b", "x", "test", "A", 0), ("c", "x", "test", "C", 1))
    )["leakage"]
    assert "1 image of test: its accuracy can come out up to 50.0 %" in finding.message
    assert finding.paths == ("a",)


def test_a_picture_in_all_three_splits_stays_in_the_test_alone():
    finding = copies(
        rows(("a", "x", "test", "A", 0), ("b", "x", "val", "A", 0), ("c", "x", "train", "A", 0))
    )["leakage"]
    assert "1 image of validation: its accuracy can come out up to 100.0 %" in finding.message
    assert "1 image of test: its accuracy can come out up to 100.0 %" in finding.message
    assert (finding.sets, finding.paths) == ((("c", "b", "a"),), ("c", "b"))


def test_near_leaks_move_to_the_training_images():
    table = rows(
        ("a", "x", "train", "A", 0),
        ("b", "x", "val", "B", 0),
        ("c", "x", "test", "C", 0),
        ("d", "x", "test", "D", 1),
    )
    finding = copies(table)["near_leakage"]
    assert finding.to == {"b": "train", "c": "train"}
    assert "1 image of validation: its accuracy could come out up to 100.0 %" in finding.message
    assert "1 image of test: its accuracy could come out up to 50.0 %" in finding.message


def test_exact_copies_alone_are_no_near_duplicates():
    assert set(copies(rows(("a", "x", "train", "A", 0), ("b", "x", "train", "A", 0)))) == {
        "exact_duplicates"
    }
    assert set(copies(rows(("a", "x", "train", "A", 0), ("b", "x", "val", "A", 0)))) == {"leakage"}


def test_surplus_copies_leave_one_in_each_split():
    table = rows(
        *(
            (name, "x", split, "A", 0)
            for name, split in (("a", "train"), ("b", "train"), ("c", "val"), ("d", "val"))
        )
    )
    assert copies(table)["exact_duplicates"].paths == ("b", "d")


def test_near_duplicates_with_other_labels_are_no_conflict():
    assert set(copies(rows(("a", "x", "train", "A", 0), ("b", "y", "train", "B", 0)))) == {
        "near_duplicates"
    }


def test_copies_with_other_labels_are_a_conflict_and_nothing_else():
    found = copies(
        rows(("a", "x", "train", "A", 0), ("b", "y", "val", "A", 0), ("c", "y", "val", "A", 0))
    )
    assert set(found) == {"conflicting_labels"}
    assert found["conflicting_labels"].sets == (("a", "b", "c"),)
    assert found["conflicting_labels"].notes == {"a": "x", "b": "y", "c": "y"}


CELLS = st.tuples(
    st.sampled_from("xy"), st.sampled_from(["train", "val", "test"]), st.integers(0, 5)
)


@pytest.mark.fuzz
@quick
@given(
    st.lists(CELLS, min_size=1, max_size=12), st.lists(st.integers(0, 3), min_size=6, max_size=6)
)
def test_the_actions_on_all_copies_leave_no_leak_and_no_conflict(cells, near_of):
    """One look, every action it offers on leaks and conflicts: whatever was copied to wherever."""
    table = rows(
        *(
            (f"{n}", label, split, "ABCDEF"[which], near_of[which])
            for n, (label, split, which) in enumerate(cells)
        )
    )
    offered = copies(table)
    for kinds in (
        ("conflicting_labels", "leakage", "near_leakage"),
        ("near_leakage",),
        ("conflicting_labels", "leakage"),
    ):
        edits = [
            edit
            for kind in kinds
            if kind in offered
            for edit in offered[kind].edits(offered[kind].paths)
        ]
        after = copies(apply_edits(table, edits))
        assert not set(kinds) & set(after)


@quick
@given(st.lists(CELLS, min_size=1, max_size=12))
def test_a_set_is_a_leak_if_and_only_if_it_lies_in_two_splits(cells):
    table = rows(
        *((f"{n}", "x", split, chr(65 + n), near) for n, (_, split, near) in enumerate(cells))
    )
    finding = copies(table).get("near_leakage")
    torn = {near for near, sides in table.groupby("near")["split"].nunique().items() if sides > 1}
    assert {
        int(table.set_index("id").loc[one[0], "near"]) for one in (finding.sets if finding else ())
    } == torn


def names_alike(*names, sizes=None):
    """The finding on class names, in a data set of one image each, or of as many as are given."""
    classes = sorted(names)
    labels = np.repeat(np.arange(len(classes)), [(sizes or {}).get(name, 1) for name in classes])
    table = pd.DataFrame(
        {"id": [f"{n}" for n in range(len(labels))], "label": labels, "split": "train"}
    )
    finding = next(
        (one for one in class_findings(table, classes) if one.kind == "similar_class_names"), None
    )
    return finding, pd.Series([classes[label] for label in labels], index=table["id"])


@pytest.mark.parametrize(
    "names",
    [
        ("cat", "Cats"),
        ("cat", "c_at"),
        ("golden retriever", "golden-retriever"),
        ("Otter", "otter "),
        ("persian", "pershan"),
        ("persian", "perssian"),
        ("class1", "Class 1"),
    ],
)
def test_class_names_that_are_alike(names):
    assert names_alike(*names)[0].classes == tuple(sorted(names))


@pytest.mark.parametrize(
    "names",
    [
        ("class1", "class2"),
        ("0", "1"),
        ("cat", "car"),
        ("cat", "dog"),
        ("stage 1", "stage 11"),
        ("2020 rose", "2021 rose"),
        ("-", "_"),
        ("male", "female"),
    ],
)
def test_class_names_that_are_not(names):
    assert names_alike(*names)[0] is None


@pytest.mark.parametrize(
    "sizes", [(9, 5, 1), (1, 5, 9), (5, 1, 9), (9, 1, 5), (1, 9, 5), (5, 9, 1)]
)
def test_classes_spelled_in_many_ways_become_the_largest(sizes):
    names = ("cat", "Cats", "c_at")
    finding, of_image = names_alike(*names, sizes=dict(zip(names, sizes, strict=True)))
    largest = names[sizes.index(9)]
    assert set(finding.to.values()) == {largest}
    assert set(finding.paths) == set(of_image.index[of_image != largest])


def test_a_chain_of_spellings_ends_in_one_class():
    finding, of_image = names_alike(
        "abcdef", "abcdefg", "abcdefgh", sizes={"abcdef": 1, "abcdefg": 2, "abcdefgh": 3}
    )
    assert (of_image.to_dict() | dict(finding.to)) == dict.fromkeys(of_image.index, "abcdefgh")


def test_imbalance_is_about_training_images_and_from_ten_times_on(image_folder, tmp_path):
    image_folder(tmp_path, {"train/red": 20, "train/blue": 2, "val/red": 1, "val/blue": 2})
    finding = found(load_dataset(tmp_path), "imbalance")
    assert finding.classes == ("red", "blue")
    assert "10 times" in finding.message
    (tmp_path / "train" / "red" / "000.png").unlink()
    assert found(load_dataset(tmp_path), "imbalance") is None


def test_what_most_images_are_like_is_the_nature_of_the_set(image_folder, tmp_path):
    image_folder(
        tmp_path, {"train/red": 10, "train/blue": 10, "val/red": 2, "val/blue": 2}, size=(24, 24)
    )
    finding = found(load_dataset(tmp_path), "tiny")
    assert (finding.severity, finding.count) == ("info", 24)
    assert not finding.bulk  # it would leave nothing


def test_a_soft_set_has_no_blurred_images(tmp_path):
    for split, count in (("train", 12), ("val", 4)):
        for name in ("red", "blue"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                soft = (
                    picture((4, 4)).rotate(90 * number).resize((64, 64), Image.Resampling.BICUBIC)
                )
                soft.point(lambda value, by=number: value - by).save(
                    tmp_path / split / name / f"{number}.png"
                )
    assert found(load_dataset(tmp_path), "blurry") is None


def test_the_worst_come_first(folder):
    for name, side in (("a", 20), ("b", 8), ("c", 14)):
        picture((side, side)).save(folder / "train" / "red" / f"{name}.png")
    assert found(inspected(folder), "tiny").paths == tuple(
        f"train/red/{name}.png" for name in "bca"
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jpeg", "JPEG"),
        ("a.JPG", "JPEG"),
        ("a.jfif", "JPEG"),
        ("a.tif", "TIFF"),
        ("a.pgm", "PPM"),
    ],
)
def test_usual_endings_are_not_wrong(folder, name, kind):
    picture().convert("L").save(folder / "train" / "red" / name, kind)
    assert found(inspected(folder), "wrong_extension") is None


def test_gray_images_are_usual_and_transparent_ones_are_not(folder):
    picture().convert("L").save(folder / "train" / "red" / "gray.png")
    assert found(inspected(folder), "odd_mode") is None
    picture((41, 32)).convert("RGBA").save(folder / "train" / "red" / "glass.png")
    assert found(inspected(folder), "odd_mode").notes == {"train/red/glass.png": "41 × 32, RGBA"}


def test_names_are_cut_after_a_few():
    assert some(["a"]) == "a"
    assert some(["a", "b", "c"]) == "a, b, c"
    assert some([str(n) for n in range(1203)]) == "0, 1, 2 and 1,200 more"
