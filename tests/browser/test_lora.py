"""LoRA in a real browser, on the digits: trained from the form, paused and resumed, evaluated, and exported."""

import io
import re
import zipfile
from contextlib import suppress

import pytest

from finetune_core import paths
from finetune_core.runs.store import RunStore
from finetune_core.training.checkpoints import load_checkpoint
from tests.chromium import MINUTE

playwright = pytest.importorskip("playwright.sync_api")

EXPORTS = {"safetensors": "model.safetensors", "onnx": "model.onnx", "script": "train.py"}


@pytest.fixture
def started(server, page, tmp_path, monkeypatch):
    """The page of a run with LoRA in the last block, just started from the form."""
    monkeypatch.setenv("THAW_HOME", str(tmp_path))
    page.goto(f"{server.url}/configure?data=digits")
    page.get_by_label("Epochs", exact=True).fill("8")
    page.get_by_label("Image size (pixels)", exact=True).fill("32")
    page.get_by_label("Image size (pixels)", exact=True).press("Enter")
    page.get_by_label("Learning rate", exact=True).fill("0.003")
    page.get_by_label("Learning rate", exact=True).press("Enter")
    page.get_by_role("radio", name=re.compile("^LoRA")).click()
    choose(page, "First stage with LoRA", "block7")
    page.get_by_text("LoRA's factors beside frozen weights").wait_for()
    page.get_by_role("button", name="Start training").click()
    page.wait_for_url(re.compile(r"/train\?run="))


def choose(page, label, option):
    """Until the list stays open long enough: where the page is drawn anew under it, it closes."""
    wanted = page.get_by_role("option", name=option, exact=True)
    for _ in range(30):
        page.get_by_role("combobox", name=label).click()
        with suppress(playwright.TimeoutError):
            wanted.click(timeout=MINUTE / 6)
            return
    raise AssertionError(f"{label} never offered {option}")


def only_run():
    (run,) = RunStore(paths.runs_dir()).runs()
    return run


def exported(page, run, name):
    """The ZIP that is offered once the export was made."""
    page.locator(f"[class~=st-key-export-{run.run_id}-{name}] button").first.click()
    with page.expect_download() as download:
        page.locator(f"[class~=st-key-download-{run.run_id}-{name}] button").first.click()
    return zipfile.ZipFile(io.BytesIO(download.value.path().read_bytes()))


def test_a_run_with_lora_is_trained_resumed_evaluated_and_exported(started, page, no_error_on):
    page.get_by_text(re.compile(r"Epoch \d+ of 8")).wait_for()
    page.get_by_role("button", name="Pause", exact=True).click()
    page.get_by_role("button", name="Resume", exact=True).click()
    page.get_by_text(re.compile("Finished$")).wait_for()  # what was paused can be evaluated, too
    page.get_by_role("button", name="See the evaluation").click()
    page.wait_for_url(re.compile(r"/evaluate\?run="))
    page.get_by_text("Mistakes, most confident first").wait_for()
    run = only_run()
    assert (run.status, run.config.strategy, run.config.lora_from) == ("finished", "lora", "block7")
    assert '"RunResumed"' in (run.run_dir / "events.jsonl").read_text()
    assert any(name.endswith("lora_A") for name in load_checkpoint(run.run_dir, "best")[0])
    accuracy = (
        page.locator("[data-testid=stMetric]", has_text="Accuracy")
        .locator("[data-testid=stMetricValue]")
        .first
    )
    assert float(accuracy.inner_text().split()[0]) > 60
    page.get_by_text("Export", exact=True).first.click()
    for name, file in EXPORTS.items():
        assert any(inside.endswith(f"/{file}") for inside in exported(page, run, name).namelist())
    no_error_on(page)
