"""DNS rebinding: another site's page whose name leads to this machine is not served."""

from tests.chromium import REBOUND
from tests.deadline import wait_until
from tests.handshake import status, websocket_status

FIELD = "Folder, archive or manifest"


def test_a_page_under_another_sites_name_draws_nothing(server, page):
    with page.expect_event("websocket") as opened:
        page.goto(f"http://{REBOUND}:{server.port}/dataset")
    field = page.get_by_label(FIELD)
    wait_until(lambda: field.count() or opened.value.is_closed())
    assert field.count() == 0
    page.goto(f"http://localhost:{server.port}/dataset")
    field.first.wait_for()


def test_another_sites_name_opens_no_websocket_and_is_told_nothing(server):
    ours, session = ("localhost", "127.0.0.1", "[::1]"), "0" * 36
    theirs = (
        REBOUND,
        f"localhost.{REBOUND}",
        f"127.0.0.1.{REBOUND}",
        f"localhost@{REBOUND}",
        "0.0.0.0",
    )
    for hosts, answer in ((ours, 101), (theirs, 403)):
        found = {host: websocket_status(server.port, host) for host in hosts}
        assert found == dict.fromkeys(hosts, answer)
    assert status(server.port, "/_stcore/health", REBOUND) == 200
    assert status(server.port, f"/media/{'0' * 56}.png", REBOUND) == 404
    origin, file = f"http://{REBOUND}:{server.port}", f"/_stcore/upload_file/{session}/file"
    for method in ("PUT", "DELETE"):
        assert status(server.port, file, REBOUND, method, Origin=origin) in (400, 403)
    assert status(server.port, "/_stcore/agent/interact", REBOUND, "POST") == 403
