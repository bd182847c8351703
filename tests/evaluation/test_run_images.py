"""Access to single images of runs, which refuses those that a server may not show."""

import pytest

from finetune_core.errors import DataError
from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.run_images import resolve_run_image
from finetune_core.reports.build import build_report


@pytest.fixture
def places(tmp_path):
    """Return a data set that may be read, and an image outside of it."""
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    data.mkdir()
    elsewhere.mkdir()
    (elsewhere / "private.png").write_bytes(b"private")
    (data / "link.png").symlink_to(elsewhere / "private.png")
    (data / "own.png").write_bytes(b"own")
    return data, elsewhere


def test_an_image_in_an_allowed_folder_is_found(make_run, places):
    data, _ = places
    run = make_run([True, False], data=str(data))
    assert resolve_run_image(run, "own.png", [data]).read_bytes() == b"own"


@pytest.mark.parametrize(
    "sample", ["../elsewhere/private.png", "link.png", "{elsewhere}/private.png"]
)
def test_an_id_that_leads_out_of_the_allowed_folders_is_refused(make_run, places, sample):
    data, elsewhere = places
    run, sample = make_run([True, False], data=str(data)), sample.format(elsewhere=elsewhere)
    with pytest.raises(DataError, match="outside the folders"):
        resolve_run_image(run, sample, [data])
    assert resolve_run_image(run, sample).read_bytes() == b"private", (
        "on the command line, a person reads what they may"
    )


def test_a_run_whose_data_lie_elsewhere_shows_nothing(make_run, places):
    data, elsewhere = places
    with pytest.raises(DataError, match="outside the folders"):
        resolve_run_image(
            make_run([True, False], data=str(elsewhere)), str(data / "own.png"), [data]
        )


@pytest.mark.train
def test_a_report_holds_no_images_from_elsewhere(make_run, places, monkeypatch):
    data, elsewhere = places
    runs = [
        make_run([True, False] * 30, data=str(elsewhere)),
        make_run([False] * 60, data=str(elsewhere), strategy="full"),
    ]
    monkeypatch.setattr(
        "finetune_core.evaluation.comparison.pictured.load_predictor", lambda run: run
    )

    def recording(_network, image, _classes):
        raise AssertionError(f"{image} was read")

    monkeypatch.setattr("finetune_core.evaluation.comparison.pictured.explain", recording)
    comparison = compare_runs(runs)
    with pytest.raises(AssertionError, match="was read"):
        build_report(comparison)
    assert build_report(comparison, [data])
