"""The app in a real browser: the way a newcomer goes, cold deep links, a reload in mid-training."""

import re
import shutil
from urllib.parse import parse_qs, urlsplit

import pytest

from finetune_core.runs.about import ABOUT_FILE

PAGES = ("", "dataset", "configure", "train", "runs", "evaluate", "compare", "predict")
LINKS = ["Home", "Dataset", "Configure", "Train", "Runs", "Evaluate", "Compare", "Predict"]
SIZES = {"train": 14, "val": 5}


def test_try_it_now_leads_to_an_evaluated_model_without_typing(server, page, no_error_on):
    page.goto(server.url)
    page.get_by_role("button", name="Try it now").click()
    page.wait_for_url(re.compile(r"/train\?run="))
    page.get_by_role("button", name="See the evaluation").click()
    page.wait_for_url(re.compile(r"/evaluate\?run="))
    page.get_by_text("Mistakes, most confident first").wait_for()
    accuracy = (
        page.locator("[data-testid=stMetric]", has_text="Accuracy")
        .locator("[data-testid=stMetricValue]")
        .inner_text()
    )
    assert float(accuracy.split()[0]) > 85
    no_error_on(page)


def test_a_reload_in_mid_training_loses_nothing_and_stop_stops(server, page, no_error_on, tmp_path):
    page.goto(f"{server.url}/configure?data=digits")
    page.get_by_label("Epochs", exact=True).fill("300")
    page.get_by_label("Image size (pixels)", exact=True).fill("32")
    page.get_by_label("Image size (pixels)", exact=True).press("Enter")
    page.get_by_text("Start training").click()
    page.wait_for_url(re.compile(r"/train\?run="))
    address = page.url
    chart = page.locator("[data-testid=stVegaLiteChart] svg").first
    chart.wait_for()
    chart.evaluate("node => { node.dataset.seen = 'yes' }")
    page.get_by_text(re.compile(r"Epoch ([3-9]|\d\d) of 300")).wait_for()
    assert chart.get_attribute("data-seen") == "yes", (
        "the chart was replaced, not updated: it flickers"
    )
    (tmp_path / "runs" / parse_qs(urlsplit(address).query)["run"][0] / ABOUT_FILE).write_text("{")
    page.get_by_text("cannot be read").wait_for()
    assert chart.get_attribute("data-seen") == "yes", "a notice that comes up replaces the chart"
    page.reload()
    page.get_by_text(re.compile(r"Epoch \d+ of 300")).wait_for()
    assert parse_qs(urlsplit(page.url).query) == parse_qs(urlsplit(address).query)
    page.get_by_role("link", name="Dataset").click()
    page.get_by_role("tab", name="Findings").wait_for()
    page.get_by_role("link", name="Train").click()
    page.get_by_text(re.compile(r"Epoch \d+ of 300")).wait_for()
    assert parse_qs(urlsplit(page.url).query) == parse_qs(urlsplit(address).query)
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("is kept").wait_for()
    no_error_on(page)


@pytest.fixture
def archive(image_folder, tmp_path):
    """A ZIP with the noise of a Mac around it, a folder too many, a text that poses as an image, and a copy across splits."""
    top = image_folder(
        tmp_path / "packed" / "pets",
        {f"{split}/{name}": n for split, n in SIZES.items() for name in ("red", "blue")},
    )
    (top / "train" / "red" / "note.png").write_text("no picture")
    shutil.copy(top / "train" / "red" / "000.png", top / "val" / "red" / "copy.png")
    (tmp_path / "packed" / "__MACOSX").mkdir()
    (tmp_path / "packed" / "__MACOSX" / "._000.png").write_bytes(b"x")
    return shutil.make_archive(str(tmp_path / "pets"), "zip", tmp_path / "packed")


def test_an_uploaded_archive_is_inspected_corrected_and_trained_on_and_the_run_says_so(
    server, page, archive, no_error_on
):
    page.goto(f"{server.url}/dataset")
    page.get_by_text("Upload", exact=True).click()
    page.locator("input[type=file]").set_input_files(archive)
    page.get_by_text("Leakage: copies across splits: 1").wait_for()
    page.get_by_text("Not images: 1").wait_for()
    page.get_by_role("tab", name="Images").click()
    page.get_by_text("Select images to exclude").wait_for()
    boxes = page.locator("[data-testid=stMain] [data-testid=stCheckbox] label")
    for number in range(3):
        boxes.nth(number).click()
        page.get_by_role("button", name=f"Exclude {number + 1} image").wait_for()
    page.get_by_role("button", name="Exclude 3 images").click()
    page.get_by_text("Changes to this data set: 3 images excluded").wait_for()
    page.get_by_role("button", name="Configure the training").click()
    page.get_by_text("with your changes (3 images excluded)").wait_for()
    page.get_by_label("Epochs", exact=True).fill("2")
    page.get_by_label("Image size (pixels)", exact=True).fill("32")
    page.get_by_label("Image size (pixels)", exact=True).press("Enter")
    page.get_by_text("Start training").click()
    page.wait_for_url(re.compile(r"/train\?run="))
    page.get_by_text("Trained with changes to the data set: 3 images excluded").wait_for()
    page.get_by_role("button", name="See the evaluation").wait_for()
    page.get_by_text("Trained with changes to the data set: 3 images excluded").click()
    page.get_by_text(re.compile(r"3 images excluded: pets/train/blue/000.png")).wait_for()
    no_error_on(page)


@pytest.mark.parametrize("name", PAGES)
def test_a_cold_deep_link_shows_the_page_with_the_same_links(server, page, no_error_on, name):
    page.goto(f"{server.url}/{name}")
    page.get_by_role("heading", level=1).wait_for()
    page.wait_for_function(
        "links => document.querySelectorAll('[data-testid=stPageLink]').length == links",
        arg=len(LINKS),
    )
    assert [
        text.split("\n")[-1] for text in page.locator("[data-testid=stPageLink]").all_inner_texts()
    ] == LINKS
    assert page.locator("[data-testid=stSidebarNav]").count() == 0
    no_error_on(page)


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wider_than_a_phone(shared_server, browser, name):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.set_default_timeout(600_000)
    page.goto(f"{shared_server.url}/{name}")
    page.get_by_role("heading", level=1).wait_for()
    width = page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth")
    page.close()
    assert width <= 390


def has_value(page, label, number):
    """A box is drawn a moment after the stages are."""
    page.wait_for_function(
        f"Number(document.querySelector('input[aria-label={label}]')?.value || NaN) === {number}"
    )


def test_a_click_on_a_drawn_stage_thaws_it_and_another_freezes_it_again(server, page, no_error_on):
    page.goto(f"{server.url}/configure")
    page.get_by_role("button", name=re.compile("Let block5 train")).click()
    page.get_by_role("button", name=re.compile("Freeze block5")).wait_for()
    page.get_by_text("How many times the learning rate each stage gets").wait_for()
    has_value(page, "block5", "1")
    page.get_by_role("button", name=re.compile("Freeze block5")).click()
    page.get_by_role("button", name=re.compile("Let block5 train")).wait_for()
    has_value(page, "block5", "0")
    # it is new, and has to train
    assert page.get_by_role("button", name=re.compile("(train|Freeze) head")).count() == 0
    no_error_on(page)
