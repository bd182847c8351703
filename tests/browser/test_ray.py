"""A comparison from the page, trained by Ray on two nodes."""

import json
import os
import re
import signal
import sys

import pytest

from tests.deadline import wait_until
from tests.ray_nodes import AUTH, two_nodes

pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray>=2.60'")
pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="two nodes need two addresses of one machine"
)


def test_a_comparison_on_two_nodes_ends_with_a_verdict_though_one_process_is_killed(
    start, page, tmp_path, monkeypatch, set_number
):
    for name, value in AUTH.items():
        monkeypatch.setenv(name, value)
    with two_nodes() as nodes:
        monkeypatch.setenv("THAW_RAY_ADDRESS", nodes.address)
        server = start(tmp_path)
        page.goto(server.address("compare", epochs=300))
        page.get_by_text("300 epochs of batches of 16").wait_for()
        for name in ("Feature extraction", "Linear probe"):
            page.get_by_role("button", name=name, exact=True).click()
        set_number("Seeds", 2)
        page.get_by_role("button", name="Start 4 runs").click()

        def training():
            return [
                run for run in server.store.runs() if run.status == "running" and run.history.epochs
            ]

        wait_until(training)
        run = training()[0]
        owner = json.loads(max(run.run_dir.glob("owner-*.json")).read_text())
        os.kill(owner["pid"], signal.SIGKILL)

        page.get_by_role("heading", name=re.compile(r"on these \d+ images")).wait_for()
        wait_until(lambda: not any(one.active for one in server.store.runs()))
        assert [one.status for one in server.store.runs()] == ["finished"] * 4
        places = server.store.run(run.run_id).history.places
        assert [place["moved_from"] != "" for place in places] == [False, True]
        page.goto(f"{server.url}/train?run={run.run_id}")
        where = f"^{re.escape(places[0]['host'])}, .* · fp32"
        page.get_by_text(re.compile(where)).first.wait_for()
