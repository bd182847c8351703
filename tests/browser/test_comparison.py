"""A comparison in a real browser: from ticked strategies to the verdict, its address, and its report."""

import re

import pytest


@pytest.fixture
def quick_settings(server, page):
    """The sample, in so few steps that four runs take seconds."""
    page.goto(f"{server.url}/configure?data=digits")
    page.get_by_label("Epochs", exact=True).fill("2")
    page.get_by_label("Image size (pixels)", exact=True).fill("32")
    page.get_by_label("Image size (pixels)", exact=True).press("Enter")
    page.get_by_label("Learning rate", exact=True).fill("0.003")
    page.get_by_label("Learning rate", exact=True).press("Enter")
    page.get_by_role("link", name="Compare").click()
    page.get_by_text("2 epochs of batches of 32").wait_for()


def test_from_strategies_and_seeds_to_a_verdict_that_can_be_sent(
    server, page, browser, tmp_path, quick_settings, no_error_on
):
    for name in ("Full fine-tuning", "Linear probe"):
        page.get_by_role("button", name=name, exact=True).click()
    page.get_by_role("button", name="Start 6 runs").wait_for()
    page.get_by_label("Seeds", exact=True).fill("2")
    page.get_by_label("Seeds", exact=True).press("Enter")
    start = page.get_by_role("button", name="Start 4 runs")
    start.wait_for()
    page.get_by_role("button", name="Forecast").click()
    page.get_by_text(re.compile(r"4 runs in total: about \d")).wait_for()
    start.click()
    page.get_by_text(re.compile(r"\d of 4 runs done")).wait_for()
    page.wait_for_url(re.compile(r"/compare\?.*runs=.+&runs=.+&runs=.+&runs="))
    heading = page.get_by_role("heading", name=re.compile("on these 269 images"))
    heading.wait_for()
    verdict = heading.inner_text().strip()
    # about the strategies, about the networks, and of the pair
    page.get_by_text("on these 269 images").nth(2).wait_for()
    assert page.get_by_text(re.compile("Take this one|Best so far")).count() == 1
    assert page.get_by_text("The networks trained here: ").count() == 1
    no_error_on(page)

    with page.expect_download() as download:
        page.get_by_role("button", name="Report, one HTML file").click()
    download.value.save_as(tmp_path / "report.html")
    report = browser.new_context(offline=True).new_page()
    report.goto((tmp_path / "report.html").as_uri())
    report.get_by_text(verdict).wait_for()
    report.locator(".figure .main-svg").first.wait_for()

    guest = browser.new_context().new_page()
    guest.set_default_timeout(600_000)
    guest.goto(page.url)
    guest.get_by_text(verdict).wait_for()
    no_error_on(guest)
    guest.context.close()
    report.context.close()


def test_stop_all_ends_the_queue_and_what_trained_is_compared(
    server, page, quick_settings, no_error_on
):
    page.get_by_role("button", name="Start 12 runs").click()
    page.get_by_text(re.compile(r"[1-8] of 12 runs done")).wait_for()
    page.get_by_role("button", name="Stop all").click()
    page.get_by_text("Left out, because they have not finished an epoch").wait_for()
    page.get_by_text("Accuracy on").wait_for()
    no_error_on(page)


@pytest.fixture
def data(image_folder, tmp_path, monkeypatch):
    """A small folder that the server of this test may read."""
    monkeypatch.setenv("THAW_DATA_ROOTS", str(tmp_path))
    return image_folder(tmp_path / "pets", {"red": 30, "blue": 30})


def test_a_linear_probe_is_fitted_and_training_is_held_against_it(data, server, page, no_error_on):
    page.goto(f"{server.url}/dataset")
    page.get_by_label("Folder, archive or manifest", exact=True).fill(str(data))
    page.get_by_label("Folder, archive or manifest", exact=True).press("Enter")
    page.get_by_role("button", name="Configure the training").click()
    page.get_by_label("Epochs", exact=True).fill("2")
    page.get_by_label("Image size (pixels)", exact=True).fill("32")
    page.get_by_label("Image size (pixels)", exact=True).press("Enter")
    page.get_by_role("radio", name="Linear probe", exact=True).click()
    page.get_by_text(re.compile("Linear probe on efficientnet_lite0 · .* no epochs")).wait_for()
    page.get_by_role("button", name="Start training").click()
    page.wait_for_url(re.compile(r"/train\?run="))
    page.get_by_text("Its head was fitted without epochs.").wait_for()
    page.get_by_text(re.compile(r"C = \S+ was chosen among")).wait_for()
    page.get_by_role("link", name="Compare").click()
    for name in ("Feature extraction", "Full fine-tuning"):
        page.get_by_role("button", name=name, exact=True).click()
    page.get_by_label("Seeds", exact=True).fill("1")
    page.get_by_label("Seeds", exact=True).press("Enter")
    page.get_by_role("button", name="Start 2 runs").click()
    page.get_by_text(
        re.compile("(beats? the linear probe by .*|(than|from) a linear probe that took .*)[.]")
    ).wait_for()
    no_error_on(page)
