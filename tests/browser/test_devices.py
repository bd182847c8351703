"""A run on two devices from the form to its evaluation, in a real browser."""

import re

import pytest

from finetune_core.config import make_config
from finetune_core.data.threads import usable_cores
from finetune_core.saved_settings import save_settings

QUICK = {
    "strategy": "feature_extraction",
    "image_size": 32,
    "epochs": 1,
    "batch_size": 64,
    "precision": "fp32",
    "device": "cpu",
}


@pytest.mark.skipif(usable_cores() < 2, reason="there is one core, so there is no choice")
def test_a_run_on_two_devices_is_started_watched_and_evaluated(
    server, page, tmp_path, monkeypatch, no_error_on
):
    monkeypatch.setenv("THAW_HOME", str(tmp_path))  # the server's
    settings = save_settings(
        {"settings": make_config(QUICK | {"data": "any"}).model_dump(mode="json"), "comparison": {}}
    )
    page.goto(f"{server.url}/configure?data=digits&settings={settings}")
    page.get_by_text(re.compile(r"\b1 epoch\b")).wait_for()
    page.get_by_text("More settings", exact=True).click()
    page.get_by_label("Devices", exact=True).fill("2")
    page.keyboard.press("Enter")
    page.get_by_text(re.compile("on 2 devices")).wait_for()
    page.get_by_role("button", name="Start training").click()
    page.get_by_text(re.compile(r"2 devices \(gloo\), each")).wait_for()
    page.get_by_text("See the evaluation").click()
    page.get_by_text("Confusion matrix").first.wait_for()
    no_error_on(page)
