"""What only a browser can do on the Evaluate page: click into a figure, and break off what takes long."""

import re

import numpy as np
import pytest

from finetune_core import paths
from finetune_core.config import make_config
from finetune_core.evaluation.single_run.evaluate import evaluation
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.store import RunStore


@pytest.fixture
def run(image_folder, tmp_path, monkeypatch):
    """A run in the server's own folder."""
    monkeypatch.setenv("THAW_HOME", str(tmp_path))
    monkeypatch.setenv("THAW_DATA_ROOTS", str(tmp_path))
    folder = image_folder(tmp_path / "images", {"red": 60, "green": 60, "blue": 60})
    settings = {
        "data": str(folder),
        "image_size": 32,
        "epochs": 2,
        "batch_size": 16,
        "test_fraction": 0.3,
        "learning_rate": 3e-3,
    }
    reservation = create_run(make_config(settings), paths.runs_dir())
    list(execute(reservation))
    return RunStore(paths.runs_dir()).read(reservation.run_dir)


def test_a_click_on_a_cell_shows_its_images_and_a_measurement_can_be_broken_off(
    run, server, page, no_error_on
):
    result = evaluation(run)
    true, predicted = (int(one) for one in np.argwhere(result.confusion)[-1])
    page.goto(f"{server.url}/evaluate?run={run.run_id}")
    area = page.locator(".js-plotly-plot .nsewdrag").first
    area.wait_for()
    box = area.bounding_box()
    # Far from the middle of the cell, where the point lies.
    page.mouse.click(
        box["x"] + box["width"] * (predicted + 0.15) / 3,
        box["y"] + box["height"] * (true + 0.85) / 3,
    )
    count = int(result.confusion[true, predicted])
    page.get_by_text(
        re.compile(rf"(predicted correctly|predicted as \w+): {count} images?$")
    ).wait_for()
    sample = result.cell(true, predicted)["id"].iloc[0]
    page.get_by_alt_text(f"{sample}: {result.classes[true]}").first.wait_for()

    kept = run.run_dir / "robustness-test.parquet"
    page.get_by_role("tab", name="Robustness").click()
    measure = page.get_by_role("button", name="Measure on")
    measure.click()
    page.get_by_role("button", name="Stop").click()
    measure.wait_for()
    assert not kept.exists()
    measure.click()
    page.get_by_text("Most harmful").wait_for()
    assert kept.is_file()
    no_error_on(page)


def test_a_click_on_a_thumbnail_opens_it_where_a_layer_is_chosen_and_escape_gives_the_focus_back(
    filled_server, page, no_error_on
):
    page.goto(f"{filled_server.url}/evaluate")
    page.get_by_text("All images, highest loss first").click()
    thumbnail = page.locator("[class*=st-key-opens-losses]").nth(1)
    button, image = (
        thumbnail.get_by_role("button", name=re.compile(r"\d+\.png$")),
        thumbnail.locator("img"),
    )
    image.scroll_into_view_if_needed()
    name, alt = button.inner_text().split("\n")[-1], image.get_attribute("alt")
    box = image.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("heading", name=name).wait_for()
    assert alt.startswith(f"{dialog.get_by_role('img').first.get_attribute('alt')}: ")
    dialog.get_by_text("map of 4 × 4 cells").wait_for()
    dialog.get_by_role("combobox", name="Layer").press("ArrowDown")
    page.get_by_role("option", name="block2, 8 × 8", exact=True).click()
    dialog.get_by_text("map of 8 × 8 cells").wait_for()
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    assert button.evaluate("element => element === document.activeElement")
    no_error_on(page)
