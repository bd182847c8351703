"""The Train page's buttons in a real browser: a press is a click, whatever is redrawn meanwhile, and an open page follows the run."""

import pytest

from finetune_core import paths
from finetune_core.config import make_config
from finetune_core.runs.record import create_run, execute
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import RunStore
from finetune_core.training.events import EpochEnded
from tests.deadline import wait_until


@pytest.fixture
def stopped(image_folder, tmp_path, monkeypatch):
    """A long run in the server's own folder that was stopped after its first epoch."""
    monkeypatch.setenv("THAW_HOME", str(tmp_path))
    monkeypatch.setenv("THAW_DATA_ROOTS", str(tmp_path))
    folder = image_folder(tmp_path / "images", {"red": 20, "blue": 20})
    settings = {
        "data": str(folder),
        "image_size": 32,
        "epochs": 1000,
        "batch_size": 16,
        "learning_rate": 1e-4,
    }
    reservation = create_run(make_config(settings), paths.runs_dir())
    for event in execute(reservation):
        if isinstance(event, EpochEnded):
            request_stop(reservation.run_dir)
    return reservation.run_dir.name


def wait_for_status(run_id, status):
    wait_until(
        lambda: RunStore(paths.runs_dir()).run(run_id).status == status,
        f"not {status}: the click was lost",
    )


def named(page, name):
    return page.get_by_role("button", name=name, exact=True)


def press(page, button):
    """A person's press: the mouse button goes up only once the page has been redrawn."""
    box = button.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.wait_for_timeout(1500)
    page.mouse.up()


def test_a_press_on_pause_or_stop_while_the_page_is_redrawn_is_not_lost(
    stopped, server, page, no_error_on
):
    page.goto(f"{server.url}/train?run={stopped}")
    for name, status in (("Pause", "paused"), ("Stop", "stopped")):
        named(page, "Resume").click()
        # drawn, while what the page showed before still stands beside it
        named(page, name).wait_for()
        press(page, named(page, name))
        wait_for_status(stopped, status)
        named(page, "Resume").wait_for()
    no_error_on(page)


def test_buttons_stay_where_they_are_from_resume_to_stopped(stopped, server, page):
    page.goto(f"{server.url}/train?run={stopped}")
    named(page, "Resume").wait_for()
    page.evaluate("""() => {
        const places = window.places = {}
        const look = () => {
            for (const button of document.querySelectorAll('.stButton button')) {
                if (button.closest('[data-stale=true]')) continue  // of an earlier drawing: it goes, and may stand beside the new ones until then
                const word = button.innerText.split('\\n').pop(), box = button.getBoundingClientRect()
                if (/^(Pause|Resume|Stop)/.test(word)) (places[word.slice(0, 4)] ??= new Set()).add(`${Math.round(box.x)} ${Math.round(box.y)}`)
            }
            requestAnimationFrame(look)
        }
        look()
    }""")
    named(page, "Resume").click()
    named(page, "Stop").click()
    wait_for_status(stopped, "stopped")
    named(page, "Pause").wait_for(state="detached")
    places = page.evaluate("Object.entries(window.places).map(([word, seen]) => [word, [...seen]])")
    assert {word: len(seen) for word, seen in places} == {"Resu": 1, "Paus": 1, "Stop": 1}


def test_an_open_page_of_a_paused_run_follows_when_another_resumes_it(
    stopped, server, page, browser, no_error_on
):
    page.goto(f"{server.url}/train?run={stopped}")
    named(page, "Resume").wait_for()
    other = browser.new_page()
    other.set_default_timeout(600_000)
    other.goto(page.url)
    named(other, "Resume").click()
    named(page, "Stop").click()
    named(other, "Resume").wait_for()
    no_error_on(page)
    other.close()
