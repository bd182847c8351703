"""Find a network in a real browser: searched in the table, its licence read, its row chosen; the form follows."""

from tests.deadline import wait_until

# pixels: the height of a row of Streamlit's tables, the header's included; the middle of the column to select by
ROW, MARKER = (35, 20)

RESEARCH_ONLY = "Research only: the licence of these weights rules commercial use out."


def choose_row(page, row):
    """Tables are drawn on a canvas, which a transparent element lies over."""
    table = page.locator("[data-testid=stDataFrame] canvas").first
    # not under what stays at the bottom
    table.evaluate("element => element.scrollIntoView({block: 'center'})")
    box = table.bounding_box()
    page.mouse.click(box["x"] + MARKER, box["y"] + ROW * row + ROW / 2)


def search(page, words):
    box = page.get_by_role("textbox", name="Search", exact=True)
    box.fill(words)
    box.press("Enter")
    page.get_by_text("Select a row to use that network").wait_for()


def use(page, name):
    choose_row(page, 1)
    page.get_by_role("button", name=f"Use {name}").click()


def badge(page, words):
    """The first: for a moment the old drawing of the page and the new one are both there."""
    return page.locator(".stMarkdownBadge").filter(has_text=words).first


def test_a_network_is_found_its_licence_read_and_the_form_follows(server, page, no_error_on):
    page.goto(f"{server.url}/configure?data=digits")
    size = page.get_by_label("Image size (pixels)", exact=True)
    size.wait_for()
    page.get_by_text("Find a network").click()
    search(page, "efficientnet_lite1")
    use(page, "efficientnet_lite1")
    page.get_by_text("Pretrained at 240 pixels").wait_for()
    wait_until(lambda: size.input_value() == "240")
    badge(page, "apache-2.0").wait_for()
    assert page.get_by_text(RESEARCH_ONLY).count() == 0
    search(page, "convnextv2_atto.fcmae_ft")
    use(page, "timm/convnextv2_atto.fcmae_ft_in1k")
    badge(page, "cc-by-nc-4.0").wait_for()
    page.get_by_text(RESEARCH_ONLY).wait_for()
    wait_until(lambda: size.input_value() == "224")
    no_error_on(page)
