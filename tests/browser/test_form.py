"""Form on Configure: typed text and choices stay, whatever is redrawn around them."""

import re

from tests.chromium import SETTLED
from tests.deadline import wait_until
from tests.factories import shared_images

FIELDS = ("Epochs", "Image size (pixels)", "Learning rate")
# Pixels: the height of a row of Streamlit's tables, and the middle of the column to select by.
ROW, MARKER = 35, 20
RESEARCH_ONLY = "Research only: the licence of these weights rules commercial use out."


def has_value(page, label, number):
    """Wait until a field that was just drawn shows its number."""
    page.wait_for_function(
        f"Number(document.querySelector('input[aria-label={label}]')?.value || NaN) === {number}"
    )


def open_settings(page):
    """Unfold the training settings."""
    page.get_by_text("Training settings").click()
    page.get_by_label("Epochs", exact=True).wait_for()


def mark_fields(page):
    """Mark the fields; return a function that checks that they are still the same elements."""
    settled = page.locator(SETTLED)
    settled.wait_for()
    for label in FIELDS:
        page.get_by_label(label, exact=True).evaluate("node => { node.marked = true }")

    def check():
        settled.wait_for()
        for label in FIELDS:
            field = page.get_by_label(label, exact=True)
            assert field.count() == 1, label
            assert field.evaluate("node => node.marked"), f"{label} was drawn anew"

    return check


def test_data_and_settings_survive_a_reload_the_back_button_and_another_tab(
    server, page, tab, set_number
):
    data = shared_images()
    page.goto(f"{server.url}/dataset")
    set_number("Folder, archive or manifest", data)
    page.get_by_role("button", name="Compare layers").wait_for()
    page.wait_for_url(re.compile(r"/dataset\?data=images-"))
    page.reload()
    page.get_by_role("button", name="Compare layers").wait_for()
    page.get_by_role("button", name="Configure the training").click()
    page.get_by_text(f"Training on {data}").wait_for()
    open_settings(page)
    set_number("Epochs", 3)
    page.wait_for_url(re.compile("settings="))
    three = page.url
    set_number("Epochs", 4)
    page.wait_for_url(lambda url: url != three)
    page.reload()
    page.get_by_text(f"Training on {data}").wait_for()
    open_settings(page)
    has_value(page, "Epochs", 4)
    page.go_back()
    page.wait_for_url(three)
    has_value(page, "Epochs", 3)
    other = tab()
    other.goto(page.url)
    other.get_by_text(f"Training on {data}").wait_for()
    open_settings(other)
    has_value(other, "Epochs", 3)
    page.get_by_role("link", name="Dataset").click()
    page.get_by_role("button", name="Compare layers").wait_for()
    assert page.url.partition("?")[2] == three.partition("?")[2]
    page.go_back()
    page.get_by_text(f"Training on {data}").wait_for()


def test_what_is_typed_right_after_the_first_change_on_a_fresh_page_stays(server, page):
    page.goto(f"{server.url}/configure?data=digits")
    page.get_by_text(re.compile(r"Last block · \d+ epochs")).wait_for()
    open_settings(page)
    check = mark_fields(page)
    epochs = page.get_by_label("Epochs", exact=True)
    epochs.fill("7")
    page.keyboard.press("Tab")
    size = page.get_by_label("Image size (pixels)", exact=True)
    size.click()
    size.press("Control+a")
    page.keyboard.type("96", delay=150)  # milliseconds: the page is drawn anew between the digits
    page.get_by_text("Last block · 7 epochs").wait_for()
    check()
    assert size.input_value() == "96"
    before = page.url
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: url != before)
    check()
    assert (size.input_value(), epochs.input_value()) == ("96", "7")


def test_fields_stay_while_data_strategy_and_weights_change_around_them(server, page, set_number):
    page.goto(f"{server.url}/configure")
    page.get_by_text("No data set is chosen yet").wait_for()
    open_settings(page)
    check = mark_fields(page)
    page.get_by_role("button", name="Use the sample").click()
    page.get_by_text(re.compile(r"Last block · \d+ epochs")).wait_for()
    check()
    page.get_by_text("More strategies").click()
    page.get_by_role("radio", name="Gradual unfreezing").click()
    page.get_by_label("Unfreeze every (epochs)", exact=True).wait_for()
    check()
    page.get_by_role("button", name=re.compile("Let block5 train|Freeze block5")).click()
    page.get_by_text("How many times the learning rate each stage gets").wait_for()
    check()
    set_number("head", -1)
    page.get_by_text(re.compile("cannot be used:")).first.wait_for()
    check()
    page.get_by_text("More settings", exact=True).click()
    decay = page.get_by_label("Weight decay", exact=True)
    decay.wait_for()
    check()
    weights = page.get_by_label("Starting weights", exact=True)
    weights.evaluate("element => element.scrollIntoView({block: 'center'})")
    page.wait_for_timeout(1000)  # scrolling closes a list that is open
    weights.click()
    page.get_by_role("option", name="Random").click()
    page.get_by_text("starts from random weights").wait_for()
    check()
    # the box stays open while errors above it come and go
    error = "Epochs must be at least 1"
    set_number("Epochs", 0)
    page.get_by_text(error).first.wait_for()
    assert decay.is_visible()
    set_number("Epochs", 3)
    page.wait_for_function("error => !document.body.innerText.includes(error)", arg=error)
    assert decay.is_visible()
    check()


def test_stages_are_toggled_by_mouse_and_keyboard_which_keeps_the_focus(server, page):
    page.goto(f"{server.url}/configure")
    freeze = page.get_by_role("button", name=re.compile("Freeze block5"))
    thaw = page.get_by_role("button", name=re.compile("Let block5 train"))
    thaw.click()
    freeze.wait_for()
    page.get_by_text("How many times the learning rate each stage gets").wait_for()
    has_value(page, "block5", 1)
    freeze.click()
    thaw.wait_for()
    page.get_by_text(re.compile("^Last block: ")).wait_for()
    # the head is new, and has to train
    assert page.get_by_role("button", name=re.compile("(train|Freeze) head")).count() == 0
    thaw.focus()
    for button in (freeze, thaw):
        page.keyboard.press("Enter")
        button.wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.get_by_role("button", name=re.compile("Freeze block6")).wait_for()


def test_a_strategy_is_chosen_by_mouse_and_keyboard_and_its_text_follows(server, page):
    page.goto(f"{server.url}/configure?data=digits")
    page.get_by_text("Full fine-tuning", exact=True).first.click()
    page.get_by_text(re.compile(r"Full fine-tuning · \d+ epochs")).wait_for()
    page.get_by_role("button", name=re.compile("Freeze stem")).wait_for()
    page.get_by_text("More strategies").click()
    page.get_by_role("radio", name="From scratch").focus()
    page.keyboard.press("ArrowDown")
    page.get_by_text(re.compile(r"Linear probe, then full \(LP-FT\) · \d+ epochs")).wait_for()
    page.get_by_label("Unfreeze every (epochs)", exact=True).wait_for()
    page.keyboard.press("ArrowDown")  # where the focus is
    page.get_by_text(re.compile(r"Gradual unfreezing · \d+ epochs")).wait_for()


def test_start_is_in_sight_wherever_the_page_is_scrolled_to(server, page):
    page.goto(server.address("configure"))
    start = page.get_by_role("button", name="Start training")
    page.get_by_role("button", name="Profile the layers").wait_for()
    for width, height in ((1440, 900), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        for target in ("Profile the layers", "Start training", "Presets"):
            page.get_by_role("button", name=target).scroll_into_view_if_needed()
            box = start.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
            assert box["y"] >= 0
            assert box["y"] + box["height"] <= height
        main = page.get_by_test_id("stMain")
        assert main.evaluate("element => element.scrollWidth") <= width


def test_a_network_is_chosen_by_its_row_and_the_form_follows(server, page):
    page.goto(f"{server.url}/configure?data=digits")
    open_settings(page)
    size = page.get_by_label("Image size (pixels)", exact=True)
    page.get_by_text("Find a network").click()

    def use(words, name, licence, pixels):
        box = page.get_by_role("textbox", name="Search", exact=True)
        box.fill(words)
        box.press("Enter")
        page.get_by_text("Select a row to use that network").wait_for()
        # A table is drawn on a canvas. It must not lie below what stays at the bottom.
        table = page.locator("[data-testid=stDataFrame] canvas").first
        table.evaluate("element => element.scrollIntoView({block: 'center'})")
        place = table.bounding_box()
        page.mouse.click(place["x"] + MARKER, place["y"] + ROW * 1.5)
        page.get_by_role("button", name=f"Use {name}").click()
        page.locator(".stMarkdownBadge").filter(has_text=licence).first.wait_for()
        wait_until(lambda: size.input_value() == pixels)

    use("efficientnet_lite1", "efficientnet_lite1", "apache-2.0", "240")
    assert page.get_by_text(RESEARCH_ONLY).count() == 0
    name = "timm/convnextv2_atto.fcmae_ft_in1k"
    use("convnextv2_atto.fcmae_ft", name, "cc-by-nc-4.0", "224")
    page.get_by_text(RESEARCH_ONLY).wait_for()
