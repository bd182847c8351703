import numpy as np
import pandas as pd
import pytest

from finetune_core.data.dataset import load_dataset
from finetune_core.data.manifest import read_other_columns
from finetune_core.errors import DataError
from finetune_core.evaluation.single_run import evaluate as evaluate_module
from finetune_core.evaluation.single_run.evaluate import slice_run
from finetune_core.evaluation.single_run.metrics import evaluate
from finetune_core.evaluation.single_run.slices import compute_slices, load_image_facts
from tests.evaluation.simulated import make_table
from tests.factories import image_folder, tiny_config, train


def make_evaluation(correct):
    """Return an evaluation of two classes that is right where ``correct`` is true."""
    logits = [np.array([1.0, 0.0] if right else [0.0, 1.0]) for right in correct]
    return evaluate(make_table(0, logits, "test"), ("a", "b"))


def test_a_true_difference_is_reported_and_chance_is_not():
    random = np.random.default_rng(0)
    dark = np.arange(400) < 100
    right = np.where(dark, random.random(400) < 0.5, random.random(400) < 0.95)
    facts = pd.DataFrame(
        {"light": np.where(dark, "dark", "bright"), "coin": random.choice(["heads", "tails"], 400)}
    )
    table = compute_slices(make_evaluation(right), facts).set_index("slice")
    assert table.loc[["dark", "bright", "heads", "tails"], "verdict"].tolist() == [
        "worse",
        "better",
        "no clear difference",
        "no clear difference",
    ]
    assert table.at["dark", "accuracy"] == right[dark].mean()
    assert table.at["dark", "low"] < right[dark].mean() < table.at["dark", "high"]


@pytest.mark.train
def test_false_alarms_are_rare():
    random = np.random.default_rng(1)
    alarms = 0
    for _ in range(40):
        facts = pd.DataFrame({name: random.normal(size=200) for name in "abc"})
        alarms += (
            compute_slices(make_evaluation(random.random(200) < 0.8), facts)["verdict"]
            .isin(["worse", "better"])
            .any()
        )
    assert alarms <= 6  # of 40 at 5 %: more happens once in 250 times


def test_few_images_are_not_compared():
    right = np.array([False] * 5 + [True] * 95)
    table = compute_slices(
        make_evaluation(right), pd.DataFrame({"kind": ["rare"] * 5 + ["usual"] * 95})
    ).set_index("slice")
    # nor are the others compared with those five
    assert table["verdict"].tolist() == ["few images", "few images"]
    assert compute_slices(make_evaluation([True]), pd.DataFrame({"kind": ["x"]}))[
        "images"
    ].tolist() == [1]
    assert compute_slices(make_evaluation([True]), pd.DataFrame(index=range(1))).empty


def test_numbers_are_cut_into_quarters_and_every_image_is_in_one():
    table = compute_slices(
        make_evaluation([True] * 100),
        pd.DataFrame({"size": np.arange(100.0), "level": np.arange(100) % 2}),
    )
    assert table.groupby("by")["images"].apply(list).to_dict() == {
        "level": [50, 50],
        "size": [25, 25, 25, 25],
    }
    assert table.loc[table["by"] == "level", "slice"].tolist() == ["0", "1"]


def test_many_names_and_missing_ones_are_put_together():
    names = [f"n{n % 15:02d}" for n in range(300)] + [""] * 10 + [None] * 10
    table = compute_slices(make_evaluation([True] * 320), pd.DataFrame({"name": names})).set_index(
        "slice"
    )
    assert len(table) == 12
    assert (table.at["all others", "images"], table.at["not known", "images"]) == (100, 20)


@pytest.fixture
def manifest(tmp_path):
    image_folder(tmp_path, {"red": 10, "blue": 10}, size=(40, 32))
    image_folder(tmp_path, {"red/large": 5}, size=(90, 64))
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    rows = [
        {
            "Path": name,
            "label": name.split("/")[0],
            "camera": "AB"[n % 2],
            "weight": f"{n}.5" if n else "",
            "same": "x",
        }
        for n, name in enumerate(files)
    ]
    path = tmp_path / "set.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_what_the_index_and_a_manifest_know_of_images(manifest):
    load_dataset(manifest)
    ids = pd.Series(["red/001.png", "red/large/000.png", "blue/000.png", "gone.png"])
    facts = load_image_facts(str(manifest), ids)
    assert facts.own == ("camera", "weight")  # not "same", which tells nothing apart
    assert facts.table["Shorter side (pixels)"].tolist()[:3] == [32, 64, 32]
    assert pd.api.types.is_numeric_dtype(facts.table["weight"])
    assert facts.table["weight"].isna().tolist() == [False, False, True, True]
    assert {"Brightness (0 to 255)", "Sharpness", "Contrast"} <= set(facts.table.columns)
    assert len(facts.table) == 4


def test_data_that_are_gone_leave_nothing_to_slice_by(manifest):
    manifest.unlink()
    assert load_image_facts(str(manifest), pd.Series(["red/001.png"])).table.columns.empty
    manifest.write_text("nothing,of,use\n1,2,3\n")
    assert load_image_facts(str(manifest), pd.Series(["red/001.png"])).own == ()


@pytest.mark.train
def test_a_run_is_sliced_once_until_its_manifest_changes(tmp_path, monkeypatch):
    image_folder(tmp_path, {"red": 16, "blue": 16})
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    manifest = tmp_path / "set.csv"

    def written(column):
        rows = [
            {"path": name, "label": name.split("/")[0], column: "AB"[n % 2]}
            for n, name in enumerate(files)
        ]
        pd.DataFrame(rows).to_csv(manifest, index=False)

    written("camera")
    run, read = train(tiny_config(manifest, epochs=1), tmp_path / "runs"), []
    really = evaluate_module.load_image_facts
    monkeypatch.setattr(
        evaluate_module, "load_image_facts", lambda *given: read.append(given) or really(*given)
    )
    assert "camera" in slice_run(run, "val")[0].own
    slice_run(run, "val")
    assert len(read) == 1
    written("place")
    assert slice_run(run, "val")[0].own == ("place",)
    assert len(read) == 2


def test_a_manifests_other_columns(manifest):
    result = read_other_columns(manifest)
    assert list(result.columns) == ["camera", "weight", "same"]
    assert result.at["blue/001.png", "camera"] == "B"
    manifest.write_text("label,camera\nred,A\n")
    with pytest.raises(DataError, match="no column path"):
        read_other_columns(manifest)
