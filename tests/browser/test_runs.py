"""Runs in a real browser: a row means its run, whatever is sorted, searched or changed."""

import re

import pytest

from finetune_core.runs.record import create_run, execute
from finetune_core.runs.stop_request import request_stop
from tests.deadline import wait_until
from tests.factories import copy_run, tiny_config, trained_run

ROW, BOX = 35, 16  # pixels: a row's height, and where its box is
# The newest first. Neither names nor accuracies have this order.
RUNS = {"ccc": "feature_extraction", "bbb": "last_block", "aaa": "last_block"}
IS_RENAMED = """() => [...document.querySelectorAll('[data-testid=stSelectbox]')]
    .some(box => [box.innerText, box.querySelector('input')?.value].join().includes('renamed'))"""


@pytest.fixture
def server(start, tmp_path, monkeypatch):
    """Return a server with ``RUNS``."""
    monkeypatch.setenv("THAW_HOME", str(tmp_path))
    server = start(tmp_path)
    for month, (name, strategy) in zip((3, 2, 1), RUNS.items(), strict=True):
        copied = copy_run(trained_run(strategy=strategy).run_dir, tmp_path / name)
        server.store.runs_dir.mkdir(exist_ok=True)
        run_dir = copied.rename(server.store.runs_dir / f"20200{month}01-000000-{name}")
        server.store.set_about(run_dir.name, name, "")
    return server


@pytest.fixture
def ids(server):
    return [run.run_id for run in server.store.list_runs()]


def tick(page, place):
    """Click the checkbox of a row of the table as drawn now; 0 is the first row."""
    page.get_by_test_id("data-grid-canvas").click(
        position={"x": BOX, "y": ROW * (place + 1.5)}, force=True
    )


def wait_for_selection(page, number, shown):
    """Wait until that many of the shown runs are selected."""
    runs = "run" if shown == 1 else "runs"
    page.get_by_text(f"{number} of {shown} {runs} selected", exact=True).wait_for()


def names(page, *wanted):
    """Wait until the table shows these names, from top to bottom."""
    for place, name in enumerate(wanted):
        cell = page.get_by_test_id(f"glide-cell-2-{place}").filter(has_text=name)
        cell.wait_for(state="attached")


def sort_by_name(page):
    page.get_by_test_id("data-grid-canvas").click(position={"x": 150, "y": ROW / 2}, force=True)


def test_sorting_and_searching_never_select_another_run(server, ids, page):
    page.goto(f"{server.url}/runs")
    wait_for_selection(page, 0, 3)
    names(page, "ccc", "bbb", "aaa")
    tick(page, 0)
    wait_for_selection(page, 1, 3)
    assert page.get_by_role("button", name="Compare", exact=True).is_disabled()
    sort_by_name(page)
    names(page, "aaa", "bbb", "ccc")
    tick(page, 0)  # aaa
    wait_for_selection(page, 2, 3)
    search = page.get_by_role("searchbox").or_(page.get_by_label("Search", exact=True)).first
    search.fill("aaa")
    wait_for_selection(page, 1, 1)
    search.fill("")
    wait_for_selection(page, 1, 3)
    names(page, "ccc", "bbb", "aaa")
    marked = page.locator("tr[aria-selected=true]")
    marked.filter(has_text="aaa").wait_for(state="attached")
    assert marked.count() == 1
    assert page.get_by_role("button", name="Open", exact=True).is_enabled()
    tick(page, 1)
    wait_for_selection(page, 2, 3)
    page.get_by_role("button", name="Compare", exact=True).click()
    page.wait_for_url(
        lambda url: (
            "/compare?" in url and all((f"runs={one}" in url) == (one in ids[1:]) for one in ids)
        )
    )
    page.get_by_text("Which runs", exact=True).click()
    page.get_by_text("2 of 3 runs chosen").wait_for()


def test_a_table_that_refreshes_itself_keeps_order_selection_and_an_open_question(
    server, ids, page
):
    waiting = create_run(tiny_config(), server.store.runs_dir)  # never begins
    page.goto(f"{server.url}/runs")
    wait_for_selection(page, 0, 4)
    sort_by_name(page)
    names(page, "", "aaa", "bbb", "ccc")
    tick(page, 1)
    tick(page, 2)
    wait_for_selection(page, 2, 4)
    page.get_by_role("button", name="Delete").click()
    question = page.get_by_role("button", name="Move 2 runs to the trash")
    question.wait_for()
    server.store.set_about(ids[1], "bbb renamed", "")
    names(page, "", "aaa", "bbb renamed", "ccc")
    assert question.is_visible()
    question.click()
    wait_for_selection(page, 0, 2)
    question.wait_for(state="detached")
    assert {run.run_id for run in server.store.list_runs()} == {ids[0], waiting.run_dir.name}
    waiting.lock.release()


def test_a_run_is_chosen_by_a_label_that_no_longer_holds(server, ids, page):
    """Hold the server's drawing back: the person chooses by a label that is still on screen."""
    held, messages = [], []

    def relay(socket):
        upstream = socket.connect_to_server()
        socket.on_message(upstream.send)
        upstream.on_message(
            lambda message: messages.append(message) if held else socket.send(message)
        )
        relay.socket = socket

    def is_held_back():
        page.evaluate("0")  # what has arrived is received with the answer
        return any(b"renamed" in message for message in messages if isinstance(message, bytes))

    page.route_web_socket(re.compile("/_stcore/stream"), relay)
    # stands as starting until it is cancelled
    waiting = create_run(tiny_config(), server.store.runs_dir)
    page.goto(f"{server.url}/train?run={waiting.run_dir.name}")
    page.get_by_role("button", name="Stop", exact=True).wait_for()
    box = page.get_by_role("combobox").first
    assert "starting" in box.input_value() + page.get_by_test_id("stSelectbox").first.inner_text()
    box.click()
    old = page.get_by_role("option").filter(has_text="ccc")
    old.wait_for()
    held.append(True)
    server.store.set_about(ids[0], "renamed", "")
    request_stop(waiting.run_dir)
    # it is cancelled: the live panel draws the page anew, and with it every label
    list(execute(waiting))
    wait_until(is_held_back)
    old.click()
    held.clear()
    for message in messages:
        relay.socket.send(message)
    page.wait_for_url(re.compile(f"run={ids[0]}"))
    page.wait_for_function(IS_RENAMED)
