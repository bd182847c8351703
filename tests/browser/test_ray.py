"""A comparison that is started on the page and trained by Ray on two nodes: one process is killed, and the verdict appears."""

import json
import os
import re
import signal
import sys

import pytest

from finetune_core.runs.store import RunStore
from tests.deadline import wait_until
from tests.ray_nodes import AUTH, two_nodes

pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray>=2.60'")
pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="two nodes need two addresses of one machine"
)


@pytest.fixture
def ray_server(browser, start, image_folder, tmp_path, monkeypatch):
    """(server whose runs Ray trains, its data)."""
    for name, value in AUTH.items():
        monkeypatch.setenv(name, value)
    data = image_folder(tmp_path / "pets", {"red": 40, "blue": 40})
    monkeypatch.setenv("THAW_DATA_ROOTS", str(tmp_path))
    with two_nodes() as nodes:
        monkeypatch.setenv("THAW_RAY_ADDRESS", nodes.address)
        yield start(tmp_path), data


def test_a_comparison_on_two_workers_of_which_one_is_killed_ends_with_a_verdict(
    ray_server, page, tmp_path, no_error_on
):
    server, data = ray_server
    page.goto(f"{server.url}/dataset")
    page.get_by_label("Folder, archive or manifest", exact=True).fill(str(data))
    page.get_by_label("Folder, archive or manifest", exact=True).press("Enter")
    page.get_by_role("button", name="Configure the training").click()
    page.get_by_label("Epochs", exact=True).fill("5")
    page.get_by_label("Image size (pixels)", exact=True).fill("32")
    page.get_by_label("Image size (pixels)", exact=True).press("Enter")
    page.get_by_role("link", name="Compare").click()
    page.get_by_text("5 epochs of batches of 32").wait_for()
    for name in ("Feature extraction", "Linear probe"):
        page.get_by_role("button", name=name, exact=True).click()
    page.get_by_label("Seeds", exact=True).fill("2")
    page.get_by_label("Seeds", exact=True).press("Enter")
    page.get_by_role("button", name="Start 4 runs").click()
    page.get_by_text(re.compile(r"\d of 4 runs done")).wait_for()

    store = RunStore(tmp_path / "runs")
    training = []

    def begun():
        training[:] = [
            run for run in store.runs() if run.status == "running" and run.history.epochs
        ]
        return training

    wait_until(begun)
    run = training[0]
    owner = json.loads(max(run.run_dir.glob("owner-*.json")).read_text())
    os.kill(owner["pid"], signal.SIGKILL)

    page.get_by_role("heading", name=re.compile(r"on these \d+ images")).wait_for()
    no_error_on(page)
    runs = store.runs()
    assert [one.status for one in runs] == ["finished"] * 4
    assert [place["moved_from"] != "" for place in store.run(run.run_id).history.places] == [
        False,
        True,
    ]
    page.goto(f"{server.url}/train?run={run.run_id}")
    page.get_by_text(
        re.compile(f"^{re.escape(run.history.places[0]['host'])}, .* · fp32|bf16")
    ).first.wait_for()
    no_error_on(page)
