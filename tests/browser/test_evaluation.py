"""Evaluate in a real browser: clicks into a figure and on a thumbnail show the images behind."""

import re

import numpy as np

from finetune_core.evaluation.single_run.evaluate import evaluation
from tests.deadline import wait_until


def test_a_click_on_a_cell_of_the_matrix_shows_its_images(server, finished_runs, page):
    run = server.store.get_run(finished_runs[0])
    result = evaluation(run)
    true, predicted = (int(one) for one in np.argwhere(result.confusion)[-1])
    page.goto(f"{server.url}/evaluate?run={run.run_id}")
    area = page.locator(".js-plotly-plot .nsewdrag").first
    area.wait_for()
    area.evaluate("element => element.scrollIntoView({block: 'center'})")
    box, classes = area.bounding_box(), len(result.classes)
    # far from the middle of the cell, where the point lies
    page.mouse.click(
        box["x"] + box["width"] * (predicted + 0.15) / classes,
        box["y"] + box["height"] * (true + 0.85) / classes,
    )
    count = int(result.confusion[true, predicted])
    words = rf"(predicted correctly|predicted as .+): {count} images?$"
    page.get_by_text(re.compile(words)).wait_for()
    sample = result.get_cell(true, predicted)["id"].iloc[0]
    page.get_by_alt_text(f"{sample}: {result.classes[true]}").first.wait_for()


def test_on_a_phone_a_click_on_a_cell_brings_its_images_into_view(server, finished_runs, tab):
    result = evaluation(server.store.get_run(finished_runs[0]))
    page = tab(width=390, height=844)
    page.goto(f"{server.url}/evaluate?run={finished_runs[0]}")
    area = page.locator(".js-plotly-plot .nsewdrag").first
    area.wait_for()
    area.evaluate("element => element.scrollIntoView({block: 'start'})")
    heading = page.get_by_text(re.compile(r"predicted (correctly|as .+): \d+ images?$"))
    true, predicted = (int(one) for one in np.argwhere(result.confusion)[0])
    box, classes = area.bounding_box(), len(result.classes)
    page.mouse.click(
        box["x"] + box["width"] * (predicted + 0.15) / classes,
        box["y"] + box["height"] * (true + 0.85) / classes,
    )
    heading.wait_for()
    image = page.locator("[class*=st-key-opens-cell] img").first
    image.wait_for()
    wait_until(
        lambda: page.viewport_size["height"] > image.bounding_box()["y"] + 40 > 0,
        "the images stay out of view",
    )


def test_a_thumbnail_opens_with_its_layers_and_escape_gives_the_focus_back(
    server, finished_runs, page
):
    page.goto(f"{server.url}/evaluate?run={finished_runs[0]}")
    page.get_by_text("All images, highest loss first").click()
    thumbnail = page.locator("[class*=st-key-opens-losses]").nth(1)
    button = thumbnail.get_by_role("button", name=re.compile(r"\d+$"))
    image = thumbnail.locator("img")
    name, alt = button.inner_text().split("\n")[-1], image.get_attribute("alt")
    image.click(force=True)  # its button lies over it
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
