"""Comparison started on a page and trained by Ray on two nodes."""

import re
import sys

import pytest

from tests.deadline import wait_until
from tests.ray_nodes import AUTH, two_nodes

pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray>=2.60'")
pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="two nodes need two addresses of one machine"
)


def test_a_comparison_from_the_page_trains_on_two_nodes_to_a_verdict(
    start, page, tmp_path, monkeypatch, set_number
):
    for name, value in AUTH.items():
        monkeypatch.setenv(name, value)
    with two_nodes() as nodes:
        monkeypatch.setenv("THAW_RAY_ADDRESS", nodes.address)
        server = start(tmp_path)
        page.goto(server.address("compare", epochs=3))
        page.get_by_text("3 epochs of batches of 16").wait_for()
        for name in ("Feature extraction", "Linear probe"):
            page.get_by_role("button", name=name, exact=True).click()
        set_number("Seeds", 2)
        page.get_by_role("button", name="Start 4 runs").click()

        page.get_by_role(
            "heading", name=re.compile(r"on \d+ (test )?images|Not trained long enough")
        ).wait_for()
        wait_until(lambda: not any(one.is_active for one in server.store.list_runs()))
        runs = server.store.list_runs()
        assert [run.status for run in runs] == ["finished"] * 4
        (place,) = runs[0].history.places
        page.goto(f"{server.url}/train?run={runs[0].run_id}")
        where = f"^{re.escape(place['host'])}, .* · fp32"
        page.get_by_text(re.compile(where)).first.wait_for()
