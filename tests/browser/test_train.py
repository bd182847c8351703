"""Train in a real browser: an open page follows the run, and every press is a click."""

import re
from urllib.parse import parse_qs, urlsplit

import pytest

from finetune_core.runs.about import ABOUT_FILE
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.stop_request import request_stop
from finetune_core.training.events import EpochEnded
from tests.deadline import wait_until
from tests.factories import shared_images, tiny_config

EPOCHS = 999  # of half a second: no test waits for the last one
LONG = {"epochs": EPOCHS, "image_size": 64, "batch_size": 4}
EPOCH = f"Epoch [0-9]+ of {EPOCHS}"
FOLLOW_BUTTONS = """() => {
    const places = window.places = {}
    const look = () => {
        for (const button of document.querySelectorAll('.stButton button')) {
            // what an earlier drawing left may stand beside the new buttons until it goes
            if (button.closest('[data-stale=true]')) continue
            const label = button.innerText.split('\\n').pop(), box = button.getBoundingClientRect()
            if (/^(Pause|Resume|Stop)/.test(label)) {
                const seen = places[label.slice(0, 4)] ??= new Set()
                seen.add(`${Math.round(box.x)} ${Math.round(box.y)}`)
            }
        }
        requestAnimationFrame(look)
    }
    look()
}"""


def many_images():
    return shared_images(red=100, blue=100)


def button(page, name):
    return page.get_by_role("button", name=name, exact=True)


def query(page):
    return parse_qs(urlsplit(page.url).query)


def test_an_open_page_follows_its_run_through_reloads_and_other_pages(server, page):
    page.goto(server.address("configure", many_images(), **LONG))
    page.get_by_text("Start training").click()
    page.wait_for_url(re.compile(r"/train\?.*run="))
    address = query(page)
    chart = page.locator("[data-testid=stVegaLiteChart] svg").first
    chart.wait_for()
    chart.evaluate("node => { node.dataset.seen = 'yes' }")
    epoch = page.get_by_text(re.compile(EPOCH))
    before = epoch.inner_text()
    epoch.filter(has_not_text=before).wait_for()
    assert chart.get_attribute("data-seen") == "yes", "the chart was replaced: it flickers"
    (server.home / "runs" / address["run"][0] / ABOUT_FILE).write_text("{")
    page.get_by_text("cannot be read").wait_for()
    assert chart.get_attribute("data-seen") == "yes", "a notice that comes up replaces the chart"
    page.reload()
    epoch.wait_for()
    assert query(page) == address
    page.get_by_role("link", name="Dataset").click()
    page.get_by_role("button", name="Compare layers").wait_for()
    page.get_by_role("link", name="Train").click()
    epoch.wait_for()
    assert query(page) == address
    button(page, "Stop").click()
    page.get_by_text("is kept").wait_for()


@pytest.fixture
def stopped_run(server, monkeypatch):
    """Return the name of a long run on ``server`` that was stopped after its first epoch."""
    monkeypatch.setenv("THAW_HOME", str(server.home))
    reservation = create_run(tiny_config(many_images(), **LONG), server.home / "runs")
    for event in execute(reservation):
        if isinstance(event, EpochEnded):
            request_stop(reservation.run_dir)
    return reservation.run_dir.name


def test_buttons_stay_in_place_and_no_press_is_lost_while_the_page_is_drawn(
    stopped_run, server, page, tab
):
    def wait_for_status(status):
        wait_until(
            lambda: server.store.get_run(stopped_run).status == status, f"not {status}: click lost"
        )

    page.goto(f"{server.url}/train?run={stopped_run}")
    button(page, "Resume").wait_for()
    page.evaluate(FOLLOW_BUTTONS)
    for name, status in (("Pause", "paused"), ("Stop", "stopped")):
        button(page, "Resume").click()
        # The mouse button goes up only once the page has been drawn anew.
        button(page, name).hover()
        page.mouse.down()
        epoch = page.get_by_text(re.compile(EPOCH)).first
        epoch.filter(has_not_text=epoch.inner_text()).wait_for()
        page.mouse.up()
        wait_for_status(status)
        button(page, "Resume").wait_for()
    places = page.evaluate(
        "Object.entries(window.places).map(([label, seen]) => [label, seen.size])"
    )
    assert dict(places) == {"Resu": 1, "Paus": 1, "Stop": 1}

    other = tab()
    other.goto(page.url)
    button(other, "Resume").click()
    button(page, "Stop").click()  # of the page that was open when another resumed the run
    button(other, "Resume").wait_for()
    wait_for_status("stopped")
