"""Accessibility: axe-core's rules in light and dark, a phone's width, and the keyboard alone."""

import re

import pytest

from finetune_core.data.recent import remember_source
from finetune_core.labelling.pool import add_folder
from tests.deadline import wait_until
from tests.factories import image_folder

LINKS = ["Home", "Dataset", "Configure", "Train", "Runs", "Evaluate", "Compare", "Predict"]
PAGES = ["", *map(str.lower, LINKS[1:])]
VIEWS = ("Slices", "Robustness", "Shifted data", "Test-time augmentation (flip)")
APP = "document.querySelector('[data-testid=stApp]')"
BACKGROUND = f"getComputedStyle({APP}).backgroundColor"
# Drawn to its end, with colours that have faded to those of its scheme and of what is not stale.
QUIET = f"""() => {APP}.dataset.testScriptState === 'notRunning'
    && !document.querySelector('[data-testid=stSkeleton], [data-stale=true]')
    && document.getAnimations().every(one => one.playState !== 'running'
        || one.transitionProperty === 'transform'  // the live camera's bars slide all the time
        || one.effect.getTiming().iterations === Infinity)"""
SCROLL_WIDTH = "document.querySelector('[data-testid=stMain]').scrollWidth"
FOCUSED = """element => document.activeElement !== document.body
    && element.contains(document.activeElement)"""


@pytest.fixture
def check(page):
    """Check the drawn page with axe-core, in light and dark: ``check()``.

    The check fails at a serious problem.

    ``check(again=True)`` repeats the check on a page that is redrawn all the time until no element
    is fading. Other problems persist, and fail the test.
    """
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.emulate_media(color_scheme="dark", reduced_motion="reduce")

    def find_violations(scheme, **options):
        options["resultTypes"] = ["violations"]
        before = page.evaluate(BACKGROUND)
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.wait_for_function(f"before => {BACKGROUND} !== before", arg=before)
        page.wait_for_function(QUIET)
        return [
            (page.url, scheme, rule["id"], node["html"], node["failureSummary"])
            for rule in axe.run(page, options=options).response["violations"]
            if rule["impact"] in ("serious", "critical") or rule["id"] == "heading-order"
            for node in rule["nodes"]
        ]

    def find_all():
        page.wait_for_function(QUIET)
        found = find_violations("light")
        # Only colours differ between the schemes.
        return [*found, *find_violations("dark", runOnly=["color-contrast"])]

    def assert_none(again=False):
        if again:
            wait_until(lambda: not find_all(), "there are violations each time")
        else:
            assert find_all() == []

    return assert_none


@pytest.fixture
def visit(page):
    """Open a page and wait until it is drawn: ``visit(address)``."""

    def open_page(address):
        page.goto(address)
        page.get_by_role("heading", level=1).wait_for()
        page.wait_for_function(QUIET)

    return open_page


def test_every_empty_page_is_accessible_linked_and_fits_a_phone(
    start, tmp_path, page, visit, check
):
    server = start(tmp_path)
    for name in PAGES:
        visit(f"{server.url}/{name}")
        links = page.get_by_test_id("stPageLink").all_inner_texts()
        assert [text.split("\n")[-1] for text in links] == LINKS
        assert page.get_by_test_id("stSidebarNav").count() == 0
        check()
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate(SCROLL_WIDTH) <= 390, name
        page.set_viewport_size({"width": 1280, "height": 900})


def test_every_page_with_data_and_runs_is_accessible(
    server, finished_runs, trained_runs, page, visit, check
):
    for name in ("", "dataset", "configure", "runs"):
        visit(server.address(name, trained_runs.data))
        check()
    for name in ("train", "predict"):
        visit(f"{server.url}/{name}?run={finished_runs[0]}")
        check()
    visit(f"{server.url}/compare?{'&'.join(f'runs={run_id}' for run_id in finished_runs)}")
    check()


def test_every_view_of_an_evaluation_and_an_opened_image_are_accessible(
    server, finished_runs, page, visit, check
):
    visit(f"{server.url}/evaluate?run={finished_runs[0]}")
    page.get_by_text("All images, highest loss first").click()
    page.locator("[class*=st-key-open-losses] button").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("Computed on a map of").wait_for()
    check()
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    page.get_by_role("tab", name="Metrics").click()
    page.get_by_text("ROC and precision-recall curves").click()
    page.get_by_text("pointwise 95 % intervals").wait_for()
    check()
    page.get_by_role("tab", name="Reliability").click()
    page.get_by_text("Reliability diagram").wait_for()
    check()
    for view in VIEWS:
        page.get_by_text(view, exact=True).click()
        page.mouse.move(0, 0)  # a chosen segment is paler under the mouse
        page.wait_for_function(QUIET)
        check()


def test_labelling_one_image_or_nine_is_accessible_and_fits_a_phone(
    server, tmp_path, page, visit, check, monkeypatch
):
    monkeypatch.setenv("THAW_HOME", str(server.home))
    data = image_folder(tmp_path / "data", {"green": 12, "red": 12})
    add_folder(data, str(image_folder(tmp_path / "loose", {"any": 40})))
    visit(f"{server.url}/dataset?data={remember_source(str(data))}")
    page.get_by_role("radio", name="Label", exact=True).click()
    page.locator(".picture img").wait_for()
    page.mouse.move(0, 0)
    check()
    page.get_by_role("radio", name="Nine", exact=True).click()
    page.locator(".tile").nth(8).wait_for()
    page.locator(".tile").nth(4).click()
    page.get_by_text("8 of 9 chosen").wait_for()
    page.mouse.move(0, 0)
    check()
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate(SCROLL_WIDTH) <= 390


def test_the_camera_is_accessible_before_and_after_it_records(
    server, finished_runs, page, visit, check
):
    visit(f"{server.url}/dataset")
    page.get_by_text("Camera", exact=True).click()
    page.get_by_role("button", name="Turn on the camera").click()
    button = page.locator("button.hold")
    button.filter(has_text="Name a class first").wait_for()
    check()
    page.get_by_label("Class", exact=True).fill("mug")
    button.filter(has_text="Hold to record mug").focus()
    page.keyboard.down(" ")
    button.filter(has_text=re.compile(r"Recording: \d")).wait_for()
    check(again=True)
    page.keyboard.up(" ")
    page.get_by_label(re.compile(r"^Frame \d+$")).first.wait_for()
    check()

    visit(f"{server.url}/predict?run={finished_runs[0]}")
    page.get_by_text("Live camera", exact=True).click()
    page.mouse.move(0, 0)
    page.get_by_text("Turn on the camera, and hold something up.").wait_for()
    check()
    page.get_by_role("button", name="Turn on the camera").click()
    page.locator("[data-testid=stProgress] strong").wait_for()
    check(again=True)


def test_the_keyboard_alone_leads_from_home_to_a_verdict(server, page, tmp_path):
    def tab_to(target):
        target.wait_for()
        for _ in range(150):
            page.keyboard.press("Tab")
            if target.evaluate(FOCUSED):
                return
        pytest.fail(f"Tab does not reach {target}")

    def press(role, name, key="Enter"):
        tab_to(page.get_by_role(role, name=name, exact=True))
        page.keyboard.press(key)

    def fill(name, value):
        press("spinbutton", name, "Control+a")
        page.keyboard.type(value)
        page.keyboard.press("Enter")

    data = image_folder(tmp_path / "pets", {"red": 14, "blue": 14})
    page.goto(server.address("", data))
    press("link", "Dataset")
    press("button", "Configure the training")
    tab_to(page.locator("summary").filter(has_text="Training settings"))
    page.keyboard.press("Enter")
    fill("Epochs", "1")
    press("button", "Start training")
    page.get_by_role("button", name="See the evaluation").wait_for()
    press("link", "Compare")
    tab_to(page.get_by_label("Strategies", exact=True))
    page.keyboard.press("Space")  # leaves out one of four
    fill("Seeds", "1")
    press("button", "Start 3 runs")
    page.get_by_role(
        "heading", name=re.compile(r"on \d+ (test )?images|Not trained long enough")
    ).wait_for()
