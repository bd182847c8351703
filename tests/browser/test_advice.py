"""Advice in a real browser: ask which backbone, see the ranking, queue what is proposed, and read the verdict against the baseline."""

import re


def number(page, label, value):
    page.get_by_label(label, exact=True).fill(value)
    page.get_by_label(label, exact=True).press("Enter")


def test_from_the_question_to_the_verdict_against_the_baseline(server, page, no_error_on):
    page.goto(f"{server.url}/compare?data=digits")
    number(page, "Seeds", "1")
    page.get_by_role("button", name="Start 4 runs").wait_for()
    page.get_by_role("link", name="Configure").first.click()
    number(page, "Epochs", "2")
    number(page, "Image size (pixels)", "32")
    page.get_by_text("Which backbone?", exact=True).click()
    page.get_by_text("32 pixels", exact=True).click()
    number(page, "Training images", "150")
    networks = page.get_by_role("combobox", name="Networks", exact=True)
    for name in ("efficientnet_lite0", "efficientnet_lite1"):
        networks.fill(name)
        page.get_by_role("option", name=name).first.click()
    page.keyboard.press("Escape")  # the open list covers the rest
    page.get_by_role("button", name="Probe 2 networks").click()
    queue = page.get_by_role("button", name="Queue both with their linear probes")
    queue.wait_for()
    page.get_by_text("The best probe: ").wait_for()
    page.get_by_text("It cannot predict how much fine-tuning will add").wait_for()
    page.get_by_text(
        re.compile("of 150 training images; validation and test images are not used")
    ).wait_for()
    page.locator(".js-plotly-plot .legend", has_text="efficientnet_lite1").wait_for()
    page.get_by_text("4 runs: last block and linear probe, each with 1 seed").wait_for()
    no_error_on(page)
    queue.click()
    page.get_by_text(re.compile(r"\d of 4 runs done")).wait_for()
    page.wait_for_url(re.compile(r"/compare\?.*runs=.+&runs=.+&runs=.+&runs="))
    page.get_by_text(re.compile("(beats?|than|from) “[^”]*[Ll]inear probe")).first.wait_for()
    no_error_on(page)
