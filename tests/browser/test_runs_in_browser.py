"""The Runs page and the run pickers in a real browser: rows are chosen by their run, whatever is sorted, searched or changed meanwhile."""

import re
import time

import pytest

from finetune_core import paths
from finetune_core.config import make_config
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import RunStore
from tests.trained import QUICK

ROW, BOX = 35, 16  # pixels: a row's height, and where its box is


@pytest.fixture
def runs(trained_once, tmp_path, monkeypatch):
    """Three finished runs in the server's own folder, the newest first: accuracy does not have this order."""
    monkeypatch.setenv("THAW_HOME", str(tmp_path))
    monkeypatch.setenv("THAW_DATA_ROOTS", str(trained_once.data.parent))
    first, second = trained_once.copied(paths.runs_dir())
    third = trained_once.copied(tmp_path, "last_block")[0].rename(
        paths.runs_dir() / "20200101-000000-efficientnet_lite0-last_block-0001"
    )
    store = RunStore(paths.runs_dir())
    for run_dir, name in ((first, "bbb"), (second, "ccc"), (third, "aaa")):
        store.describe(run_dir.name, name, "")
    return [run.run_id for run in store.runs()]


def store():
    return RunStore(paths.runs_dir())


def tick(page, place):
    """Click the box of the row that stands there now; 0 is the first."""
    page.get_by_test_id("data-grid-canvas").click(
        position={"x": BOX, "y": ROW * (place + 1.5)}, force=True
    )


def selected(page, number, shown):
    page.get_by_text(
        f"{number} of {shown} run{'' if shown == 1 else 's'} selected", exact=True
    ).wait_for()


def names(page, *wanted):
    """Wait until the table shows these names, from top to bottom."""
    for place, name in enumerate(wanted):
        page.get_by_test_id(f"glide-cell-2-{place}").filter(has_text=name).wait_for(
            state="attached"
        )


def sort_by_name(page):
    page.get_by_test_id("data-grid-canvas").click(position={"x": 150, "y": ROW / 2}, force=True)


def test_sorting_and_searching_never_select_another_run(runs, server, page, no_error_on):
    page.goto(f"{server.url}/runs")
    selected(page, 0, 3)
    names(page, "ccc", "bbb", "aaa")
    tick(page, 0)
    selected(page, 1, 3)
    sort_by_name(page)
    names(page, "aaa", "bbb", "ccc")
    tick(page, 0)  # aaa
    selected(page, 2, 3)
    search = page.get_by_role("searchbox").or_(page.get_by_label("Search", exact=True)).first
    search.fill("aaa")
    selected(page, 1, 1)
    search.fill("")
    selected(page, 1, 3)
    names(page, "ccc", "bbb", "aaa")
    marked = page.locator("tr[aria-selected=true]")
    marked.filter(has_text="aaa").wait_for(state="attached")
    assert marked.count() == 1
    page.get_by_role("button", name="Open", exact=True).click()
    page.wait_for_url(re.compile(f"run={runs[2]}"))
    no_error_on(page)


def test_two_runs_are_selected_and_compared(runs, server, page, no_error_on):
    page.goto(f"{server.url}/runs")
    selected(page, 0, 3)
    assert page.get_by_role("button", name="Compare", exact=True).is_disabled()
    tick(page, 1)
    selected(page, 1, 3)
    tick(page, 2)
    selected(page, 2, 3)
    page.get_by_role("button", name="Compare", exact=True).click()
    page.wait_for_url(
        lambda url: (
            "/compare?" in url
            and all(f"runs={run_id}" in url for run_id in runs[1:])
            and runs[0] not in url
        )
    )
    page.get_by_text("Which runs", exact=True).click()
    page.get_by_text(re.compile("^2 of [0-9]+ runs chosen")).wait_for()
    no_error_on(page)


def test_deleting_asks_with_the_number_and_leaves_the_others(runs, server, page, no_error_on):
    page.goto(f"{server.url}/runs")
    selected(page, 0, 3)
    tick(page, 0)
    selected(page, 1, 3)
    tick(page, 1)
    selected(page, 2, 3)
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Move 2 runs to the trash").click()
    selected(page, 0, 1)
    page.get_by_role("button", name="Move 2 runs to the trash").wait_for(state="detached")
    assert [run.run_id for run in store().runs()] == runs[2:]
    no_error_on(page)


def test_a_run_is_chosen_by_a_label_that_no_longer_holds(
    runs, trained_once, server, page, no_error_on
):
    """The browser does not get what the server has drawn since: the person chooses by what is still there to be read."""
    held, messages = [], []

    def between(socket):
        upstream = socket.connect_to_server()
        socket.on_message(upstream.send)
        upstream.on_message(
            lambda message: messages.append(message) if held else socket.send(message)
        )
        between.socket = socket

    page.route_web_socket(re.compile("/_stcore/stream"), between)
    # It waits for a device that never comes free, so it stands as queued until it is cancelled.
    waiting = create_run(make_config(QUICK | {"data": str(trained_once.data)}), paths.runs_dir())
    page.goto(f"{server.url}/train?run={waiting.run_dir.name}")
    page.get_by_role("button", name="Stop", exact=True).wait_for()
    box = page.get_by_role("combobox").first
    assert "queued" in box.input_value() + page.get_by_test_id("stSelectbox").first.inner_text()
    box.click()
    old = page.get_by_role("option").filter(has_text="ccc")
    old.wait_for()
    held.append(True)
    store().describe(runs[0], "renamed", "")
    request_stop(waiting.run_dir)
    # it is cancelled: the live panel redraws the page, and with it every label
    list(execute(waiting))
    end = time.monotonic() + 300
    while not any(b"renamed" in message for message in messages if isinstance(message, bytes)):
        assert time.monotonic() < end
        page.wait_for_timeout(100)
    old.click()
    held.clear()
    for message in messages:
        between.socket.send(message)
    page.wait_for_url(re.compile(f"run={runs[0]}"))
    page.wait_for_function(
        "[...document.querySelectorAll('[data-testid=stSelectbox] input')].some(one => one.value.includes('renamed')) || document.querySelector('[data-testid=stSelectbox]').innerText.includes('renamed')"
    )
    no_error_on(page)


def test_a_table_that_refreshes_itself_keeps_order_selection_and_an_open_question(
    runs, trained_once, server, page, no_error_on
):
    # never begins
    waiting = create_run(make_config(QUICK | {"data": str(trained_once.data)}), paths.runs_dir())
    page.goto(f"{server.url}/runs")
    selected(page, 0, 4)
    sort_by_name(page)
    names(page, "", "aaa", "bbb", "ccc")
    tick(page, 1)
    selected(page, 1, 4)
    page.get_by_role("button", name="Delete").click()
    question = page.get_by_role("button", name="Move 1 run to the trash")
    question.wait_for()
    store().describe(runs[1], "bbb renamed", "")
    names(page, "", "aaa", "bbb renamed", "ccc")
    assert question.is_visible()
    question.click()
    selected(page, 0, 3)
    assert {run.run_id for run in store().runs()} == {*runs[:2], waiting.run_dir.name}
    waiting.lock.release()
    no_error_on(page)
