"""The form's fields stay the same elements while the page around them is redrawn: what is typed meanwhile is not lost."""

import re

import pytest

FIELDS = ("Epochs", "Image size (pixels)", "Learning rate")


def field(page, label):
    return page.get_by_label(label, exact=True)


def settle(page):
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()


@pytest.fixture
def marked():
    """``marked(page)``: marks the fields as they are now; the function returned checks that they are still those, and no others."""

    def mark(page):
        settle(page)
        for label in FIELDS:
            field(page, label).evaluate("node => { node.marked = true }")

        def check():
            settle(page)
            for label in FIELDS:
                assert field(page, label).count() == 1, label
                assert field(page, label).evaluate("node => node.marked"), f"{label} was drawn anew"

        return check

    return mark


def test_what_is_typed_right_after_the_first_change_on_a_fresh_page_stays(
    server, page, marked, no_error_on
):
    page.goto(f"{server.url}/configure?data=digits")
    page.get_by_text(re.compile("10 epochs")).wait_for()
    unchanged = marked(page)
    field(page, "Epochs").fill("7")
    page.keyboard.press("Tab")
    size = field(page, "Image size (pixels)")
    size.click()
    size.press("Control+a")
    page.keyboard.type("96", delay=150)  # milliseconds: the page is redrawn between the digits
    page.get_by_text(re.compile("7 epochs")).wait_for()
    unchanged()
    assert size.input_value() == "96"
    before = page.url
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: url != before)
    unchanged()
    assert size.input_value() == "96"
    assert field(page, "Epochs").input_value() == "7"
    no_error_on(page)


def test_fields_stay_while_strategy_weights_and_problems_change_around_them(
    server, page, marked, no_error_on
):
    page.goto(f"{server.url}/configure?data=digits")
    page.get_by_text(re.compile("10 epochs")).wait_for()
    unchanged = marked(page)
    page.get_by_role("radio", name="Gradual unfreezing").click()
    field(page, "Unfreeze every (epochs)").wait_for()
    unchanged()
    page.get_by_role("button", name=re.compile("Let block5 train|Freeze block5")).click()
    page.get_by_text("How many times the learning rate each stage gets").wait_for()
    unchanged()
    page.get_by_label("head", exact=True).fill("-1")
    page.keyboard.press("Enter")
    page.get_by_text("The strategy is drawn once").or_(
        page.get_by_text(re.compile("cannot be used:"))
    ).first.wait_for()
    unchanged()
    page.get_by_text("More settings", exact=True).click()
    page.get_by_label("Starting weights", exact=True).click()
    page.get_by_role("option", name="Random").click()
    page.get_by_text("starts from random weights").wait_for()
    unchanged()
    no_error_on(page)


def test_fields_stay_when_data_are_chosen(server, page, marked, no_error_on):
    page.goto(f"{server.url}/configure")
    page.get_by_text("No data set is chosen yet").wait_for()
    unchanged = marked(page)
    page.get_by_role("button", name="Use the sample").click()
    page.get_by_text(re.compile("10 epochs")).wait_for()
    unchanged()
    field(page, "Epochs").fill("7")
    page.keyboard.press("Enter")
    page.get_by_text(re.compile("7 epochs")).wait_for()
    unchanged()
    no_error_on(page)
