"""Profile on the pages: started on Configure or as the next experiment, shown on Compare."""

import pytest

from finetune_core import paths
from finetune_core.data.recent import remember_source
from finetune_core.profiling import queued
from finetune_core.runs.design import find_profiled_stage
from finetune_core.runs.store import RunStore
from pages.shared.jobs import jobs
from pages.shared.runs.profile import LABEL
from tests.deadline import wait_until
from tests.factories import Shared, image_folder, shared_images, trained_run
from tests.pages.harness import (
    button,
    button_labels,
    open_page,
    place_run,
    press,
    tiny_form,
    unescaped_text,
)

pytestmark = pytest.mark.train


@pytest.fixture(autouse=True)
def readable(monkeypatch, tmp_path):
    monkeypatch.setenv("THAW_DATA_ROOTS", f"{Shared.folder}:{tmp_path}")


@pytest.fixture
def few_images(tmp_path):
    counts = {"train": 8, "val": 6, "test": 6}
    layout = {f"{split}/{hue}": n for split, n in counts.items() for hue in ("red", "green")}
    return str(image_folder(tmp_path / "few", layout))


def runs():
    return RunStore(paths.runs_dir()).list_runs()


def wait_for_job(at):
    """Wait for the job that a press started. A job with nothing to train may have ended already."""
    for job in jobs().list_running():
        assert job.wait(300)
        assert job.error is None, job.error
    return at.run()


@pytest.fixture
def quick(monkeypatch):
    """Look at the queue more often."""
    monkeypatch.setattr(queued, "_LOOK", 0.02)


def configure(data):
    form, state = tiny_form(epochs=3)
    return open_page("configure", form=form, state=state | {"data_id": remember_source(data, None)})


def test_one_press_on_configure_profiles_and_compare_shows_it(few_images, quick):
    at = configure(few_images)
    assert "ordinary runs" in button(at, LABEL).help
    assert "Forecast: about 20 runs" in button(at, LABEL).help
    at = wait_for_job(press(at, LABEL))
    assert "All of its runs are finished." in button(at, LABEL).help
    found = runs()
    assert {run.status for run in found} == {"finished"}
    shown = open_page("compare", state={"data_id": remember_source(few_images, None)})
    text = unescaped_text(shown)
    headers = [header.value for header in shown.header]
    assert headers.index("Profile") < headers.index("Test accuracy")
    assert "Train nothing: take the linear probe." in text
    assert "The profile is not complete" not in text
    assert any("profile-figure" in chart.proto.id for chart in shown.get("plotly_chart"))
    assert "Ember: gains more" in text
    elsewhere = open_page("compare")
    assert "Profile" not in [header.value for header in elsewhere.header]
    press(elsewhere, "Show the profile of few")
    assert "Profile" in [header.value for header in elsewhere.header]
    count = len(found)
    wait_for_job(press(configure(few_images), LABEL))
    assert len(runs()) == count


def test_stopping_the_job_stops_its_runs_and_a_press_goes_on(few_images, quick):
    at = press(configure(few_images), LABEL)
    (job,) = jobs().list_running()
    wait_until(lambda: any(find_profiled_stage(run.config) for run in runs()))
    job.stop()
    assert job.wait(300)
    wait_until(lambda: not any(run.is_active for run in runs()))
    left = len(runs())
    at = wait_for_job(press(at.run(), LABEL))
    assert {run.status for run in runs()} == {"finished"}
    assert len(runs()) >= left


def test_without_a_profile_compare_shows_none_and_offers_one():
    for name in ("linear_probe", "last_block"):
        place_run(trained_run(strategy=name), name)
    state = {"data_id": remember_source(str(shared_images()), None)}
    at = open_page("compare", state=state)
    text = unescaped_text(at)
    assert "Profile" not in [header.value for header in at.header]
    assert "Profile the layers of timm/test_resnet" in text
    assert LABEL in button_labels(at)
    elsewhere = open_page("compare")
    assert "while these data are chosen" in unescaped_text(elsewhere)
    assert LABEL not in button_labels(elsewhere)
