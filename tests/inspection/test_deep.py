"""Deep inspection of real images with planted defects.

``test_learned.py`` tests the linear models alone.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from finetune_core.config import Edit
from finetune_core.data.dataset import assemble_dataset, index_data, load_dataset
from finetune_core.data.findings import KINDS
from finetune_core.data.sample import write_digits_folder
from finetune_core.formatting import PHASE_TITLES
from finetune_core.inspection import deep
from finetune_core.inspection.deep import inspect_deeply
from finetune_core.models.network import network_stages
from finetune_core.work import finish
from tests.drain import drain
from tests.factories import image_folder, shared_images

LITE = "efficientnet_lite0"


def find_finding(report, kind):
    return next((one for one in report.findings if one.kind == kind), None)


def skip_map(features):
    return np.zeros((len(features), 2))
    yield


@pytest.fixture
def unmapped(monkeypatch):
    """Skip the map, which takes the most time and has tests of its own."""
    monkeypatch.setattr(deep, "lay_out", skip_map)


@pytest.fixture(scope="module")
def digits():
    """Return class -> files of the sample, shuffled because they are sorted by writer."""
    random = np.random.default_rng(0)
    return {
        folder.name: random.permutation(sorted(folder.iterdir()))
        for folder in sorted(write_digits_folder().iterdir())
    }


def copy_digits(digits, root, counts, change=None, skip=0):
    """Copy the first digits of each class below ``root``; ``change`` modifies an image."""
    for name, files in digits.items():
        target = Path(root, name)
        target.mkdir(parents=True, exist_ok=True)
        for file in files[skip : skip + counts]:
            if change is None:
                shutil.copy(file, target)
            else:
                change(Image.open(file)).save(target / file.name)
    return Path(root)


@pytest.fixture
def some_digits(digits, tmp_path):
    return copy_digits(digits, tmp_path / "digits", 20)


# --- Wrong labels ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inspect_digits():
    """Return a function that inspects the whole sample with labels changed by ``{id: label}``."""
    seen = finish(index_data(write_digits_folder()))
    rules = {"val_fraction": 0.15, "test_fraction": 0.15, "split_seed": 0, "groups": ""}
    rules["near_duplicates"] = "together"

    def inspect(wrong):
        edits = [Edit(action="relabel", paths=(path,), to=label) for path, label in wrong.items()]
        dataset = assemble_dataset(write_digits_folder(), seen, **rules, edits=edits)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(deep, "lay_out", skip_map)
            patch.setattr(deep, "two_sample_auc", lambda *_: (0.5, 1.0))
            return finish(inspect_deeply(dataset, LITE, 64))

    dataset = assemble_dataset(write_digits_folder(), seen, **rules, edits=())
    inspect.labels = dataset.table.set_index("id")["class"]
    return inspect


@pytest.mark.train
def test_clean_digits_have_few_suspects_no_strays_and_like_neighbours(inspect_digits):
    report = inspect_digits({})
    finding = find_finding(report, "label_errors")
    assert finding is None or finding.count < 0.03 * 1797
    assert find_finding(report, "outliers") is None
    embeddings = report.embeddings
    some = embeddings.ids[::60]
    same = [
        sample[0] == other[0] for sample in some for other, _ in embeddings.find_nearest(sample, 5)
    ]
    assert len(same) == 5 * len(some)
    assert np.mean(same) > 0.7


@pytest.mark.train
def test_most_swapped_labels_are_found_in_a_list_that_is_worth_reading(inspect_digits):
    random = np.random.default_rng(0)
    labels = inspect_digits.labels
    chosen = labels.index[random.choice(len(labels), len(labels) // 20, replace=False)]
    right = labels[chosen].to_dict()
    report = inspect_digits(
        {path: str((int(label) + random.integers(1, 10)) % 10) for path, label in right.items()}
    )
    finding = find_finding(report, "label_errors")
    hits = [path for path in finding.paths if path in right]
    assert len(right) == 89
    assert len(hits) >= 0.7 * len(right)
    assert len(finding.paths) <= 2 * len(right)
    assert len(hits) >= 0.7 * len(finding.paths)
    assert all(path in right for path in finding.paths[:20])  # the surest come first
    # Relabelling them as suggested corrects nearly all.
    assert sum(finding.to[path] == right[path] for path in hits) >= 0.9 * len(hits)
    assert finding.count == len(finding.paths)
    assert f"{finding.count} images" in finding.message

    predictions = report.predictions
    confidence = predictions["label_confidence"]
    assert len(confidence) == 1797
    assert confidence[list(right)].median() < 0.1 < 0.8 < confidence.drop(list(right)).median()
    for path in finding.paths:
        assert predictions.at[path, "predicted"] == finding.to[path]
        assert predictions.at[path, "confidence"] == pytest.approx(finding.confidence[path])

    assert KINDS[finding.kind].action == "relabel"
    assert [pair[0] for pair in finding.sets] == list(finding.paths)
    assert set(finding.to) == set(finding.notes) == set(finding.paths)
    assert set(finding.to.values()) <= set("0123456789")
    for suspect, twin in finding.sets:
        assert twin not in finding.paths
        # the sample's folders are the right classes
        assert twin.split("/")[0] == finding.to[suspect] or twin in right
        assert f"looks like {finding.to[suspect]}" in finding.notes[suspect]
    edits = finding.make_edits(finding.paths)
    assert {path: edit.to for edit in edits for path in edit.paths} == finding.to
    assert {edit.action for edit in edits} == {"relabel"}


# --- Splits that differ, and outliers -------------------------------------------------------------


CHANGES = {
    "inverted": ImageOps.invert,
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(5)),
    "brightened": lambda image: image.point(lambda value: 128 + value // 2),
    "dimmed": lambda image: ImageEnhance.Brightness(image).enhance(0.3),
}


@pytest.mark.train
@pytest.mark.parametrize(
    "change",
    [
        "inverted",
        pytest.param("brightened", marks=pytest.mark.train),
        pytest.param("blurred", marks=pytest.mark.exhaustive),
        pytest.param("dimmed", marks=pytest.mark.exhaustive),
    ],
)
def test_a_split_of_other_pictures_is_a_shift(digits, tmp_path, unmapped, change):
    copy_digits(digits, tmp_path / "train", 12)
    copy_digits(digits, tmp_path / "val", 4, CHANGES[change], skip=12)
    copy_digits(digits, tmp_path / "test", 4, skip=16)
    report = finish(inspect_deeply(load_dataset(tmp_path), LITE, 64))
    assert report.auc["val"] > 0.95
    assert report.auc["test"] < 0.7
    shifts = [one for one in report.findings if one.kind == "shift"]
    assert len(shifts) == 1
    assert {path.split("/")[0] for path in shifts[0].paths} == {"val"}
    assert shifts[0].count == 40
    assert "validation images" in shifts[0].message


@pytest.mark.train
@pytest.mark.parametrize("size", [64, pytest.param(128, marks=pytest.mark.exhaustive)])
def test_strays_among_digits_are_found_first(some_digits, unmapped, size):
    random = np.random.default_rng(0)
    for number in range(3):
        noise = np.uint8(random.integers(0, 256, (64, 64, 3)))
        Image.fromarray(noise).save(some_digits / str(number) / "noise.png")
    x, y = np.meshgrid(np.arange(64), np.arange(64))
    stripes = np.stack([(x // 8 % 2) * 255, (y // 4 % 2) * 200, x * 4], axis=-1)
    Image.fromarray(np.uint8(stripes)).save(some_digits / "7" / "stripes.png")
    report = finish(inspect_deeply(load_dataset(some_digits), LITE, size))
    finding = find_finding(report, "outliers")
    assert set(finding.paths[:4]) == {"0/noise.png", "1/noise.png", "2/noise.png", "7/stripes.png"}
    assert finding.count <= 6
    assert finding.paths[0] in finding.message
    assert "times the usual spread" in finding.notes[finding.paths[0]]


@pytest.mark.train
def test_random_split_is_no_shift(some_digits, unmapped):
    dataset = load_dataset(some_digits, val_fraction=0.25, test_fraction=0.25, split_seed=0)
    report = finish(inspect_deeply(dataset, LITE, 64))
    assert set(report.auc) == {"val", "test"}
    assert find_finding(report, "shift") is None


@pytest.mark.train
def test_sets_of_one_kind_have_no_outliers(unmapped):
    report = finish(inspect_deeply(load_dataset(shared_images(red=60, blue=60)), LITE, 64))
    assert find_finding(report, "outliers") is None


@pytest.mark.train
def test_of_very_many_images_a_sample_is_mapped(some_digits, monkeypatch):
    monkeypatch.setattr(deep, "MOST_MAPPED", 30)
    dataset = load_dataset(some_digits)
    report, again = (finish(inspect_deeply(dataset, LITE, 32)) for _ in range(2))
    assert len(set(report.places["id"])) == 30
    assert set(report.places["id"]) < set(dataset.table["id"])
    pd.testing.assert_frame_equal(report.places, again.places)


# --- The whole ------------------------------------------------------------------------------------


def test_a_deep_inspection_of_digits(some_digits):
    dataset = load_dataset(some_digits)
    steps, report = drain(inspect_deeply(dataset, LITE, 64))
    phases = [step.phase for step in steps]
    assert set(phases) <= set(PHASE_TITLES)
    assert {"decode", "features"} <= set(phases)
    assert all(0 <= step.done <= step.total for step in steps)
    assert (report.backbone, report.image_size) == (LITE, 64)
    assert [one.stage for one in report.probes] == [
        stage.name for stage in network_stages(LITE)[:-1]
    ]
    assert max(one.accuracy for one in report.probes) > 0.7
    assert set(report.auc) == {"val", "test"}
    assert sorted(report.places["id"]) == dataset.table["id"].tolist()
    assert np.isfinite(report.places[["x", "y"]]).all(axis=None)
    result = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert result["probes"][0].keys() == {"stage", "accuracy", "error"}
    assert result["suggestion"]["strategy"] == report.strategy
    json.dumps([one.to_json() for one in report.findings], allow_nan=False)
    assert {one.kind for one in report.findings} <= {"label_errors", "shift", "outliers"}


RED_AND_BLUE = {"train/red": 12, "train/blue": 12}
ODD = {
    "one class of four": {"red": 4},
    "two images a class": {f"class{n}": 2 for n in range(9)} | {"more": 3},
    "class that is only validated": RED_AND_BLUE | {"val/red": 6, "val/green": 6},
    "one class": {"red": 30},
    "sixty classes of three": {f"class{n}": 3 for n in range(60)},
    "one large class": {"red": 100, "blue": 3, "green": 6},
    "splits of its own": RED_AND_BLUE
    | {"val/red": 12, "val/blue": 12, "test/red": 3, "test/blue": 3},
    "one class trained, two validated": {"train/red": 12, "val/red": 6, "val/green": 6},
}
DEAR = [pytest.param(layout, marks=pytest.mark.train) for layout in [*ODD][3:]]


@pytest.mark.train
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("layout", [*[*ODD][:3], *DEAR])
def test_odd_data_sets_are_inspected_too(layout):
    assert_sound(load_dataset(shared_images(**ODD[layout])))


@pytest.mark.train
def test_data_set_without_test_images_is_inspected_too():
    folder = shared_images(red=40, blue=40)
    report = assert_sound(load_dataset(folder, val_fraction=0.25, test_fraction=0))
    assert set(report.auc) == {"val"}


@pytest.mark.train
@pytest.mark.filterwarnings("ignore:May not flag all label issues")
def test_classes_of_near_duplicates_are_inspected_too(tmp_path):
    """Each class is a film of one scene."""
    folder = image_folder(tmp_path / "images", {"other": 30})
    random = np.random.default_rng(0)
    for name in ("first", "second"):
        scene = np.asarray(
            Image.fromarray(np.uint8(random.integers(0, 255, (6, 6, 3)))).resize((48, 48)), float
        )
        (folder / name).mkdir()
        for number in range(14):
            frame = np.clip(scene + random.normal(0, 2, scene.shape), 0, 255)
            Image.fromarray(np.uint8(frame)).save(folder / name / f"{number}.png")
    dataset = load_dataset(folder)
    assert dataset.table["near"].nunique() == 32
    finding = find_finding(assert_sound(dataset), "label_errors")
    suspects = finding.paths if finding else ()
    assert not [path for path in suspects if path.startswith(("first", "second"))]


@pytest.mark.train
def test_a_validation_split_of_near_duplicates_is_compared_with_nothing(tmp_path):
    folder = image_folder(tmp_path / "images", {"train/red": 20, "train/blue": 20, "val/blue": 1})
    picture = next((folder / "val" / "blue").iterdir())
    for number in range(14):
        (folder / "val" / "blue" / f"copy{number}.png").write_bytes(picture.read_bytes())
    assert assert_sound(load_dataset(folder)).auc == {}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_plain_pictures_are_inspected_too(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(20):
            Image.new("RGB", (32 + number, 32 + number), (100, 100, 100)).save(
                tmp_path / name / f"{number}.png"
            )
    report = assert_sound(load_dataset(tmp_path))
    assert find_finding(report, "outliers") is None


def assert_sound(dataset):
    steps, report = drain(inspect_deeply(dataset, LITE, 32))
    assert {step.phase for step in steps} <= set(PHASE_TITLES)
    json.dumps([report.to_json(), *(one.to_json() for one in report.findings)], allow_nan=False)
    assert len(report.places) == len(dataset.table)
    assert np.isfinite(report.places[["x", "y"]]).all(axis=None)
    assert (report.suggestion is None) == (report.probes == ())
    ids = set(dataset.table["id"])
    assert all(path in ids for one in report.findings for path in one.paths)
    return report
