"""First steps of a newcomer without typing: the browser test that plain ``pytest`` runs."""

import re
import zipfile

import pytest


@pytest.mark.journey
def test_a_newcomer_trains_evaluates_predicts_and_exports(server, page):
    page.goto(server.url)
    page.get_by_role("button", name="Try it now").click()
    page.get_by_alt_text("Handwritten digit 3").first.wait_for()
    answer = page.get_by_role("heading", name="training the last block").inner_text()
    before, after = (float(share) for share in re.findall(r"([\d.]+) %", answer)[:2])
    assert min(before, after) > 85
    page.get_by_role("link", name="Train").click()
    page.wait_for_url(re.compile("/train"))
    verdict = page.get_by_test_id("stAlert").filter(has_text="on 269 held-out images")
    verdict.wait_for()
    assert float(re.search(r"Test accuracy ([\d.]+) %", verdict.inner_text())[1]) > 85
    page.get_by_text("the frozen stages are bit for bit what they were before").wait_for()

    page.get_by_role("button", name="See the evaluation").click()
    page.wait_for_url(re.compile(r"/evaluate\?.*run="))
    page.get_by_role("heading", name="Confusion matrix").wait_for()
    page.get_by_text("Mistakes, most confident first").wait_for()
    accuracy = page.get_by_test_id("stMetric").filter(has_text="Accuracy").first
    assert float(re.search(r"([\d.]+) %", accuracy.inner_text())[1]) > 85

    page.get_by_role("link", name="Predict").click()
    page.get_by_text("This network distinguishes 10 classes").wait_for()
    seven = min((server.home / "data" / "digits" / "7").glob("*.png"))
    page.locator("input[type=file]").set_input_files(seven)
    page.get_by_role("heading", name=re.compile(r"^7 · [\d.]+ %")).wait_for()
    page.get_by_alt_text(f"{seven.name}: Grad-CAM: 7").wait_for()

    page.get_by_text("Export", exact=True).first.click()
    page.locator("[class*=st-key-export-][class*=-safetensors] button").first.click()
    with page.expect_download() as download:
        page.locator("[class*=st-key-download-][class*=-safetensors] button").first.click()
    names = zipfile.ZipFile(download.value.path()).namelist()
    assert any(name.endswith("/model.safetensors") for name in names)
