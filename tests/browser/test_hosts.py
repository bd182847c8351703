"""DNS rebinding: a page of another site whose name leads to this machine is not served."""

import pytest

from tests.chromium import REBOUND
from tests.handshake import status, websocket_status

FIELD = "Folder, archive or manifest"


def test_a_page_under_another_sites_name_draws_nothing(shared_server, page):
    address = f"http://{REBOUND}:{shared_server.port}/dataset"
    with page.expect_event("websocket") as opened:
        page.goto(address)
    while not (opened.value.is_closed() or page.get_by_label(FIELD).count()):
        page.wait_for_timeout(100)
    assert page.get_by_label(FIELD).count() == 0
    page.goto(f"http://localhost:{shared_server.port}/dataset")
    page.get_by_label(FIELD).first.wait_for()


@pytest.mark.parametrize(
    ("host", "answer"),
    [
        ("localhost", 101),
        ("127.0.0.1", 101),
        ("[::1]", 101),
        (REBOUND, 403),
        (f"localhost.{REBOUND}", 403),
        (f"127.0.0.1.{REBOUND}", 403),
        (f"localhost@{REBOUND}", 403),
        ("0.0.0.0", 403),
    ],
)
def test_only_this_machines_names_open_a_websocket(shared_server, host, answer):
    assert websocket_status(shared_server.port, host) == answer


def test_what_is_reached_without_a_websocket_tells_nothing(shared_server):
    port, session = shared_server.port, "0" * 36
    assert status(port, "/_stcore/health", REBOUND) == 200
    assert status(port, f"/media/{'0' * 56}.png", REBOUND) == 404
    for method in ("PUT", "DELETE"):
        path = f"/_stcore/upload_file/{session}/file"
        assert status(port, path, REBOUND, method, Origin=f"http://{REBOUND}:{port}") in (400, 403)
    assert status(port, "/_stcore/agent/interact", REBOUND, "POST") == 403
