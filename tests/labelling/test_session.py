"""Labels of added images: stored as edits, trained on, and evaluated on only if set aside."""

import shutil

import numpy as np
import pytest

from finetune_core.config import Edit
from finetune_core.data.dataset import load_dataset
from finetune_core.data.decode import Resize, read_square
from finetune_core.data.edits import add_edits, load_edits, remove_edits
from finetune_core.data.entry import entry_folder
from finetune_core.errors import DataError
from finetune_core.inspection.features import Features
from finetune_core.labelling import session
from finetune_core.labelling.answers import NONE_OF_THESE, SKIPPED
from finetune_core.labelling.pool import Unlabelled, add_folder, find_pool, load_unlabelled
from finetune_core.labelling.session import prepare_labelling
from finetune_core.work import Step, finish
from tests.factories import image_folder

HUES = ("red", "green", "blue")


@pytest.fixture
def data(tmp_path):
    return image_folder(tmp_path / "data", {"red": 12, "green": 12})


@pytest.fixture
def loose(tmp_path):
    """Return a folder of images without class folders: eight red, then eight blue ones."""
    made = image_folder(tmp_path / "made", {"red": 30, "blue": 8})
    loose = tmp_path / "loose"
    (loose / "deeper").mkdir(parents=True)
    for number in range(8):
        # the first twelve are equal to the data set's own
        shutil.copy(made / "red" / f"{20 + number:03d}.png", loose / f"red{number}.png")
        shutil.copy(made / "blue" / f"{number:03d}.png", loose / "deeper" / f"blue{number}.png")
    return loose


@pytest.fixture(autouse=True)
def mean_colours(monkeypatch):
    """Replace features by an image's mean colours, which need no network."""

    def compute(dataset, backbone, image_size, fit):
        yield Step(0, 1, "features")
        squares = [
            read_square(path, Resize(8, fit=fit)) for path in dataset.get_paths(dataset.table)
        ]
        values = np.stack(squares).reshape(len(squares), -1, 3).mean(axis=1) / 255
        return Features(np.arange(len(values)), ("stem",), (values.astype(np.float32),))

    monkeypatch.setattr(session, "compute_features", compute)


def prepare(data):
    dataset = load_dataset(data, edits=load_edits(data))
    return finish(prepare_labelling(dataset, load_unlabelled(data), "any", 32))


def make_edit(path, name, action="label"):
    return Edit(action=action, paths=(str(path),), to=name)


def test_added_images_wait_and_a_label_makes_them_training_images(data, loose):
    add_folder(data, str(loose))
    labelling = prepare(data)
    assert len(labelling.pool) == 16
    blue = [path for path in labelling.pool["id"] if "blue" in path]
    before = load_dataset(data)
    add_edits(data, [make_edit(path, "blue") for path in blue])
    after = load_dataset(data, edits=load_edits(data))
    assert after.classes == ("blue", "green", "red")
    added = after.by_id.loc[blue]
    assert set(added["class"]) == {"blue"}
    assert set(added["split"]) == {"train"}
    kept = after.by_id.loc[before.table["id"], "split"]
    assert kept.tolist() == before.table["split"].tolist()
    labels = prepare(data).get_labels(load_edits(data))
    assert labels.count == 8
    assert labels.waiting.sum() == 8
    assert (loose / "deeper" / "blue0.png").exists()


def test_a_label_is_undone_and_its_image_waits_again(data, loose):
    add_folder(data, str(loose))
    labelling = prepare(data)
    edit = make_edit(labelling.pool["id"][0], "red")
    add_edits(data, [edit])
    assert not labelling.get_labels(load_edits(data)).waiting[0]
    remove_edits(data, [edit])
    assert labelling.get_labels(load_edits(data)).waiting[0]
    assert len(load_dataset(data, edits=load_edits(data)).table) == 24


def test_skipped_images_and_those_of_no_class_do_not_wait_and_are_no_data(data, loose):
    add_folder(data, str(loose))
    labelling = prepare(data)
    first, second, third = labelling.pool["id"][:3]
    add_edits(
        data,
        [
            Edit(action="ignore", paths=(first,), kind=SKIPPED),
            Edit(action="ignore", paths=(second,), kind=NONE_OF_THESE),
            Edit(action="exclude", paths=(third,)),
        ],
    )
    labels = labelling.get_labels(load_edits(data))
    assert (labels.waiting.sum(), labels.skipped, labels.none, labels.count) == (13, 1, 1, 0)
    assert len(load_dataset(data, edits=load_edits(data)).table) == 24


@pytest.mark.parametrize("split", ["val", "test"])
def test_what_the_model_chose_cannot_be_evaluated_on(data, loose, split):
    add_folder(data, str(loose))
    path = prepare(data).pool["id"][0]
    add_edits(data, [make_edit(path, "red")])
    move = Edit(action="move", paths=(path,), to=split)
    with pytest.raises(DataError, match="model chose"):
        add_edits(data, [move])
    assert move not in load_edits(data)
    with pytest.raises(DataError, match="model chose"):  # a run's config is input
        load_dataset(data, edits=[make_edit(path, "red"), move])


def test_a_random_tenth_is_asked_for_first_and_tests(data, tmp_path):
    many = image_folder(tmp_path / "many", {"any": 200})
    add_folder(data, str(many), set_aside=True)
    labelling = prepare(data)
    aside = (labelling.pool["split"] == "test").to_numpy()
    assert 8 <= aside.sum() <= 34
    labels = labelling.get_labels(())
    probe = labelling.fit(labels)
    order = labelling.order(labels, probe)
    assert set(order[: aside.sum()]) == set(np.flatnonzero(aside))
    names, _ = labelling.propose_labels(probe, order)
    assert set(names[: aside.sum()]) == {None}  # the model must not influence these labels
    assert None not in names[aside.sum() :]
    path = labelling.pool["id"][order[0]]
    add_edits(data, [make_edit(path, "red", "label_test")])
    assert load_dataset(data, edits=load_edits(data)).by_id.at[path, "split"] == "test"
    own = labelling.own
    assert labelling.fit(labelling.get_labels(load_edits(data))).linear is not None
    assert len(own) == 24


def test_copies_of_the_data_sets_own_images_do_not_wait(data, loose):
    shutil.copy(data / "red" / "000.png", loose / "copy.png")
    shutil.copy(loose / "red0.png", loose / "twice.png")
    add_folder(data, str(loose))
    assert len(prepare(data).pool) == 16


def test_the_orders_find_what_is_asked_for(data, loose):
    add_folder(data, str(loose))
    labelling = prepare(data)
    labels = labelling.get_labels(())
    probe = labelling.fit(labels)
    assert probe.classes == ("green", "red")
    assert probe.accuracy == 1
    pool = labelling.pool["id"]
    by_class = pool[labelling.order(labels, probe, "probable", "red")]
    assert all("red" in path for path in by_class[:8])
    blue = next(path for path in pool if "blue" in path)
    similar = pool[labelling.order(labels, probe, "similar", blue)]
    assert all("/blue" in path for path in similar[:8])
    for order, of, message in (
        ("similar", "gone", "no image"),
        ("probable", "blue", "No image has the class"),
        ("other", "", "is one of"),
    ):
        with pytest.raises(DataError, match=message):
            labelling.order(labels, probe, order, of)


def test_the_manifest_is_read_as_the_same_data_set(data, loose):
    add_folder(data, str(loose))
    labelling = prepare(data)
    add_edits(data, [make_edit(labelling.pool["id"][0], "red")])
    labelling.to_manifest(load_edits(data)).to_csv(data / "manifest.csv", index=False)
    again = load_dataset(data / "manifest.csv")
    ours = load_dataset(data, edits=load_edits(data))
    assert again.fingerprint == ours.fingerprint


def test_what_cannot_be_added_is_refused_and_nothing_is_kept(data, loose, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, roots, message in (
        (tmp_path / "empty", (), "no images"),
        (tmp_path / "gone", (), "no folder"),
        (loose, (data,), "outside"),
    ):
        with pytest.raises(DataError, match=message):
            add_folder(data, str(folder), roots=roots)
    assert load_unlabelled(data) == Unlabelled()
    with pytest.raises(DataError, match="Add a folder"):
        prepare(data)


def test_a_damaged_list_is_named_and_not_forgotten(data, loose):
    add_folder(data, str(loose))
    (entry_folder(data) / "unlabelled.json").write_text("{")
    with pytest.raises(DataError, match="Repair or delete"):
        load_unlabelled(data)


def test_labelled_images_outside_of_what_may_be_read_are_left_out(data, loose):
    add_folder(data, str(loose))
    path = prepare(data).pool["id"][0]
    found = load_dataset(data, edits=[make_edit(path, "red")], roots=[data])
    assert path not in set(found.table["id"])
    assert any(path in finding.paths for finding in found.findings)


def test_a_pool_without_added_folders_is_empty(data):
    assert finish(find_pool(load_dataset(data), Unlabelled())).empty
