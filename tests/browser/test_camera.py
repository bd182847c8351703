"""A camera in a real browser: two classes recorded, one frame deleted, trained on, and classified live. Chromium plays a video as its camera."""

import re

import numpy as np
import pytest

from tests.browser.conftest import ARGUMENTS, CHROMIUM, MINUTE

WIDTH, HEIGHT, FRAMES = 320, 240, 30
COLOURS = {"cup": (90, 60, 220), "pen": (150, 210, 50)}  # Y, Cb, Cr


def video(file, colour):
    """An object of that colour that wanders over a gray ground, as an uncompressed Y4M."""
    noise = np.random.default_rng(0)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    with file.open("wb") as out:
        out.write(f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F10:1 Ip A1:1 C420jpeg\n".encode())
        for number in range(FRAMES):
            angle = 2 * np.pi * number / FRAMES
            inside = np.hypot(rows - HEIGHT / 2 - 40 * np.sin(angle), columns - WIDTH / 2 - 80 * np.cos(angle)) < 60
            luma = np.where(inside, colour[0], 128) + noise.integers(-12, 12, inside.shape)
            planes = [luma, *(np.where(inside[::2, ::2], tint, 128) for tint in colour[1:])]
            out.write(b"FRAME\n" + b"".join(plane.astype(np.uint8).tobytes() for plane in planes))
    return file


@pytest.fixture
def open_page(browser, tmp_path):
    """``open_page(arguments)``: a page of a Chromium of its own, which begins with these arguments."""
    opened = []

    def begin(*arguments):
        chromium = browser.browser_type.launch(executable_path=CHROMIUM, args=[*ARGUMENTS, *arguments])
        opened.append(chromium)
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(10 * MINUTE)
        return page

    yield begin
    for chromium in opened:
        chromium.close()


@pytest.fixture
def shown(open_page, tmp_path):
    """``shown(name)``: a page before whose camera that object is held."""

    def begin(name):
        file = video(tmp_path / f"{name}.y4m", COLOURS[name])
        devices = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
        return open_page(*devices, f"--use-file-for-fake-video-capture={file}")

    return begin


def hold(page, name):
    """Record with the mouse for some frames, then with the keyboard."""
    page.get_by_label("Class", exact=True).fill(name)
    page.get_by_label("Class", exact=True).press("Enter")
    page.get_by_role("button", name="Turn on the camera").click()
    button = page.locator("button.hold:not([disabled])")
    button.filter(has_text=f"Hold to record {name}").hover()
    for begin, end in ((page.mouse.down, page.mouse.up), (lambda: page.keyboard.down(" "), lambda: page.keyboard.up(" "))):
        button.focus()
        begin()
        button.filter(has_text=re.compile(r"Recording: (1[2-9]|[2-9]\d)")).wait_for()
        end()
        page.get_by_role("status").filter(has_text=re.compile(rf"\d\d frames of {name} recorded")).wait_for()
    page.get_by_text(re.compile(rf"{name} · \d\d frames · 2 presses")).wait_for()


def stored(home, name):
    return sorted((home / "data" / "camera" / "objects" / name).glob("*.jpg"))


def predicted(page, name):
    page.get_by_text("Live camera", exact=True).click()
    page.get_by_role("button", name="Turn on the camera").click()
    page.locator("[data-testid=stProgress] strong", has_text=re.compile(rf"^{name} · \d+ %")).wait_for()
    page.get_by_text(re.compile(r"\d+\.\d predictions per second")).wait_for()


def test_two_classes_are_recorded_corrected_trained_on_and_classified_live(server, tmp_path, shown, no_error_on):
    cup, pen = shown("cup"), shown("pen")
    for page, name in ((cup, "cup"), (pen, "pen")):
        page.goto(f"{server.url}/dataset")
        page.get_by_text("Camera", exact=True).click()
        hold(page, name)
    before = stored(tmp_path, "pen")
    assert len({file.name.partition("_")[0] for file in before}) == 2
    pen.locator("[data-testid=stCheckbox] label").first.click()
    pen.get_by_role("button", name="Delete 1 frame").click()
    pen.get_by_text("1 frame deleted.").wait_for()
    assert len(stored(tmp_path, "pen")) == len(before) - 1
    pen.get_by_role("button", name="Train on it").click()
    pen.get_by_text(re.compile("Training on .*objects.csv.* in 2 classes")).wait_for()
    pen.get_by_text("Feature extraction", exact=True).first.click()
    pen.get_by_text("Feature extraction on efficientnet_lite0").wait_for()
    pen.get_by_label("Epochs", exact=True).fill("40")
    pen.get_by_label("Image size (pixels)", exact=True).fill("64")
    pen.get_by_label("Image size (pixels)", exact=True).press("Enter")
    pen.get_by_text("Start training").click()
    pen.wait_for_url(re.compile(r"/train\?run="))
    pen.get_by_role("button", name="See the evaluation").wait_for()
    for page, name in ((cup, "cup"), (pen, "pen")):
        page.goto(f"{server.url}/predict")
        predicted(page, name)
        no_error_on(page)


def test_without_a_camera_or_a_secure_address_the_page_says_what_to_do(start, tmp_path, open_page, no_error_on):
    server = start(tmp_path, options=("--server.enableCORS=false", "--server.enableXsrfProtection=false"))
    page = open_page("--host-resolver-rules=MAP thaw.test 127.0.0.1", "--use-fake-ui-for-media-stream")
    for address, words in (
        (server.url, "There is no camera on this device"),
        (f"http://thaw.test:{server.port}", "Open Thaw as"),
    ):
        page.goto(f"{address}/dataset")
        page.get_by_text("Camera", exact=True).click()
        turn = page.get_by_role("button", name="Turn on the camera")
        turn.wait_for()
        if turn.is_enabled():
            turn.click()
        page.get_by_role("alert").filter(has_text=words).wait_for()
        no_error_on(page)
