"""What is chosen stays, in a real browser: through a reload, the back button, a second tab; and the keyboard keeps its place."""

import re

import pytest


@pytest.fixture
def data(image_folder, tmp_path, monkeypatch):
    """A folder that the servers of this file may read."""
    monkeypatch.setenv("THAW_DATA_ROOTS", str(tmp_path))
    return image_folder(tmp_path / "pets", {"red": 12, "blue": 12})


def set_number(page, name, value):
    box = page.get_by_label(name, exact=True)
    box.fill(value)
    box.press("Enter")


def has_epochs(page, number):
    """A box that was just drawn gets its number a moment later."""
    page.wait_for_function(
        f"document.querySelector('input[aria-label=Epochs]')?.value === '{number}'"
    )


def test_data_and_settings_survive_a_reload_the_back_button_and_a_second_tab(
    data, server, page, browser, no_error_on
):
    page.goto(f"{server.url}/dataset")
    page.get_by_label("Folder, archive or manifest", exact=True).fill(str(data))
    page.get_by_label("Folder, archive or manifest", exact=True).press("Enter")
    page.get_by_role("tab", name="Findings").wait_for()
    page.wait_for_url(re.compile(r"/dataset\?data=pets-"))
    page.reload()
    page.get_by_role("tab", name="Findings").wait_for()
    page.get_by_role("button", name="Configure the training").click()
    page.get_by_text(f"Training on {data}").wait_for()
    set_number(page, "Epochs", "3")
    page.wait_for_url(re.compile("settings="))
    three = page.url
    set_number(page, "Epochs", "4")
    page.wait_for_url(lambda url: url != three)
    page.reload()
    page.get_by_text(f"Training on {data}").wait_for()
    has_epochs(page, 4)
    page.go_back()
    page.wait_for_url(three)
    has_epochs(page, 3)
    tab = browser.new_page()
    tab.set_default_timeout(600_000)
    tab.goto(page.url)
    tab.get_by_text(f"Training on {data}").wait_for()
    has_epochs(tab, 3)
    no_error_on(tab)
    tab.close()
    page.get_by_role("link", name="Dataset").click()
    page.get_by_role("tab", name="Findings").wait_for()
    assert page.url.partition("?")[2] == three.partition("?")[2]
    page.go_back()
    page.get_by_text(f"Training on {data}").wait_for()
    no_error_on(page)


def test_a_stage_that_is_toggled_by_keyboard_keeps_the_focus(server, page, no_error_on):
    page.goto(f"{server.url}/configure")
    page.get_by_role("button", name=re.compile("Let block5 train")).focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name=re.compile("Freeze block5")).wait_for()
    page.get_by_text("How many times the learning rate each stage gets").wait_for()
    page.keyboard.press("Enter")  # where the focus is
    page.get_by_role("button", name=re.compile("Let block5 train")).wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.get_by_role("button", name=re.compile("Freeze block6")).wait_for()
    no_error_on(page)


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_start_is_in_sight_wherever_the_page_is_scrolled_to(
    shared_server, browser, no_error_on, width, height
):
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(600_000)
    page.goto(f"{shared_server.url}/configure?data=digits")
    start = page.get_by_role("button", name="Start training")
    page.get_by_role("button", name="Forecast all strategies").wait_for()
    for target in ("Forecast all strategies", "Start training", "The tutorial's recipe"):
        page.get_by_role("button", name=target).scroll_into_view_if_needed()
        box = start.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= height
    assert page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth") <= width
    no_error_on(page)
    page.close()


def test_a_strategy_is_chosen_by_mouse_and_keyboard_and_what_it_says_follows(
    server, page, no_error_on
):
    page.goto(f"{server.url}/configure?data=digits")
    page.get_by_text("Full fine-tuning", exact=True).first.click()
    page.get_by_text("Full fine-tuning on efficientnet_lite0").wait_for()
    page.get_by_role("button", name=re.compile("Freeze stem")).wait_for()
    page.get_by_role("radio", name="From scratch").focus()
    page.keyboard.press("ArrowDown")
    page.get_by_text("Linear probe, then full (LP-FT) on efficientnet_lite0").wait_for()
    page.get_by_label("Unfreeze every (epochs)", exact=True).wait_for()
    page.keyboard.press("ArrowDown")  # where the focus is
    page.get_by_text("Gradual unfreezing on efficientnet_lite0").wait_for()
    no_error_on(page)


def test_more_settings_stays_open_while_errors_above_it_come_and_go(server, page, no_error_on):
    page.goto(f"{server.url}/configure?data=digits")
    page.get_by_text("More settings", exact=True).click()
    decay = page.get_by_label("Weight decay", exact=True)
    decay.wait_for()
    for value, count in (("0", 1), ("3", 0)):
        set_number(page, "Epochs", value)
        page.wait_for_function(
            "wanted => document.body.innerText.split('Epochs must be at least 1').length - 1 >= wanted * 2 || "
            "(!wanted && !document.body.innerText.includes('Epochs must be at least 1'))",
            arg=count,
        )
        assert decay.is_visible()
    no_error_on(page)


def test_what_is_pressed_while_a_job_works_does_not_end_it(data, server, page, no_error_on):
    page.goto(f"{server.url}/dataset")
    page.get_by_label("Folder, archive or manifest", exact=True).fill(str(data))
    page.get_by_label("Folder, archive or manifest", exact=True).press("Enter")
    page.get_by_role("button", name="Configure the training").click()
    page.get_by_role("button", name="Find a learning rate").click()
    page.get_by_role("radio", name="Feature extraction", exact=True).wait_for()
    page.get_by_label("Epochs", exact=True).fill("2")
    page.get_by_label("Epochs", exact=True).press("Enter")
    page.locator("[data-testid=stPlotlyChart]").wait_for()
    no_error_on(page)
