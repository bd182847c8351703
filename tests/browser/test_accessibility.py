"""Pages for everybody: by axe-core's rules, in light and dark, empty and full; and from Home to a verdict with the keyboard alone."""

import re

import pytest

PAGES = ("", "dataset", "configure", "train", "runs", "evaluate", "compare", "predict")
VIEWS = ("Metrics", "Curves", "Calibration", "Slices", "Robustness")
QUIET = """() => document.querySelector('[data-testid=stApp]').dataset.testScriptState === 'notRunning'
    && !document.querySelector('[data-testid=stSkeleton], [data-stale=true]')"""
BACKGROUND = "getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor"
FOCUSED = "element => document.activeElement !== document.body && element.contains(document.activeElement)"


@pytest.fixture(scope="module")
def axe():
    return pytest.importorskip("axe_playwright_python.sync_playwright").Axe()


@pytest.fixture
def violations(axe):
    """``violations(page)``: what axe-core calls serious or critical, or a wrong order of headings, once the page is drawn; in light and
    in dark."""

    def found(page):
        seen, backgrounds = [], set()
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            page.wait_for_timeout(300)  # colours fade
            page.wait_for_function(QUIET)
            backgrounds.add(page.evaluate(BACKGROUND))
            for rule in axe.run(page).response["violations"]:
                if rule["impact"] in ("serious", "critical") or rule["id"] == "heading-order":
                    seen += [
                        (scheme, rule["id"], node["html"], node["failureSummary"])
                        for node in rule["nodes"]
                    ]
        assert len(backgrounds) == 2, "the page did not follow the scheme"
        return seen

    return found


def opened(page, server, name):
    page.goto(f"{server.url}/{name}")
    page.get_by_role("heading", level=1).wait_for()
    page.wait_for_function(QUIET)


@pytest.mark.parametrize("name", PAGES)
def test_an_empty_page_has_no_serious_violation(shared_server, page, violations, name):
    opened(page, shared_server, name)
    assert violations(page) == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_with_data_and_runs_has_no_serious_violation(filled_server, page, violations, name):
    opened(page, filled_server, f"{name}?data=digits" if name in ("dataset", "configure") else name)
    assert violations(page) == []


def test_an_opened_image_and_every_view_of_an_evaluation_have_no_serious_violation(
    filled_server, page, violations
):
    opened(page, filled_server, "evaluate")
    page.get_by_text("All images, highest loss first").click()
    page.locator("[class*=st-key-open-losses] button").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("Computed on a map of").wait_for()
    assert violations(page) == []
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    for view in VIEWS:
        page.get_by_role("tab", name=view).click()
        page.wait_for_function(QUIET)
        assert (view, violations(page)) == (view, [])


def test_the_camera_has_no_serious_violation_before_and_after_something_is_recorded(
    server, page, violations
):
    opened(page, server, "dataset")
    page.get_by_text("Camera", exact=True).click()
    page.get_by_role("button", name="Turn on the camera").click()
    button = page.locator("button.hold")
    button.filter(has_text="Name a class first").wait_for()
    page.wait_for_function(QUIET)
    assert violations(page) == []
    page.get_by_label("Class", exact=True).fill("cup")
    button.filter(has_text="Hold to record cup").focus()
    page.keyboard.down(" ")
    button.filter(has_text="Recording: 8").wait_for()
    assert violations(page) == []
    page.keyboard.up(" ")
    # which ones are shown depends on how many were taken
    page.get_by_label(re.compile(r"^Frame \d+$")).first.wait_for()
    page.wait_for_function(QUIET)
    assert violations(page) == []


def test_the_live_camera_has_no_serious_violation(filled_server, page, violations):
    opened(page, filled_server, "predict")
    page.get_by_text("Live camera", exact=True).click()
    page.mouse.move(0, 0)
    page.get_by_text("Turn on the camera, and hold something up.").wait_for()
    assert violations(page) == []
    page.get_by_role("button", name="Turn on the camera").click()
    page.locator("[data-testid=stProgress] strong").wait_for()
    assert violations(page) == []


@pytest.fixture
def tab_to(page):
    """``tab_to(target)``: presses Tab until that has the focus."""

    def press(target):
        target.wait_for()
        for _ in range(150):
            page.keyboard.press("Tab")
            if target.evaluate(FOCUSED):
                return
        pytest.fail(f"Tab does not reach {target}")

    return press


def test_from_home_to_a_verdict_with_the_keyboard_alone(server, page, tab_to, no_error_on):
    def press(role, name, key="Enter"):
        tab_to(page.get_by_role(role, name=name, exact=isinstance(name, str)))
        page.keyboard.press(key)

    def fill(name, value):
        press("spinbutton", name, "Control+a")
        page.keyboard.type(value)
        page.keyboard.press("Enter")

    page.goto(server.url)
    press("link", "Dataset")
    press("button", "Use the sample")
    press("button", "Configure the training")
    fill("Epochs", "1")
    fill("Image size (pixels)", "32")
    press("button", "Start training")
    page.get_by_role("button", name="See the evaluation").wait_for()
    press("link", "Compare")
    tab_to(page.get_by_label("Strategies", exact=True))
    page.keyboard.press("Space")  # leaves out one of four
    fill("Seeds", "1")
    press("button", "Start 3 runs")
    page.get_by_role("heading", name=re.compile("on these 269 images")).wait_for()
    no_error_on(page)
