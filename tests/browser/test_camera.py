"""Camera in a real browser. Chromium plays a video as its camera."""

import re
import shutil
from urllib.parse import urlsplit

import numpy as np
import pytest

from tests.chromium import FAKE_CAMERA
from tests.deadline import wait_until

WIDTH, HEIGHT, FRAMES = 320, 240, 30
COLOURS = {"cup": (90, 60, 220), "pen": (150, 210, 50)}  # Y, Cb, Cr
HIDE = """hidden => {
    Object.defineProperty(document, 'hidden', {value: hidden, configurable: true})
    document.dispatchEvent(new Event('visibilitychange'))
}"""
PRESS = """link => {
    // as a person does, but without taking the focus: the camera gives way to the pointer
    link.dispatchEvent(new PointerEvent('pointerdown', {bubbles: true, composed: true}))
    link.click()
}"""


def video(file, colour):
    """Return an uncompressed Y4M video of a coloured object that wanders over gray ground."""
    noise = np.random.default_rng(0)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    with file.open("wb") as out:
        out.write(f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F10:1 Ip A1:1 C420jpeg\n".encode())
        for number in range(FRAMES):
            angle = 2 * np.pi * number / FRAMES
            inside = (
                np.hypot(
                    rows - HEIGHT / 2 - 40 * np.sin(angle), columns - WIDTH / 2 - 80 * np.cos(angle)
                )
                < 60
            )
            luma = np.where(inside, colour[0], 128) + noise.integers(-12, 12, inside.shape)
            planes = [luma, *(np.where(inside[::2, ::2], tint, 128) for tint in colour[1:])]
            out.write(b"FRAME\n" + b"".join(plane.astype(np.uint8).tobytes() for plane in planes))
    return file


@pytest.fixture
def shown(server, tab, tmp_path):
    """Open a page with that object before its camera: ``shown(name)``. Nothing is recorded yet."""
    if (recordings := server.home / "data" / "camera").is_dir():
        shutil.rmtree(recordings)

    def begin(name):
        file = video(tmp_path / f"{name}.y4m", COLOURS[name])
        return tab(*FAKE_CAMERA, f"--use-file-for-fake-video-capture={file}")

    return begin


def open_camera(page, server, name):
    """Turn the camera on Dataset on, and name a class; return the record button."""
    page.goto(f"{server.url}/dataset")
    page.get_by_text("Camera", exact=True).click()
    page.get_by_label("Class", exact=True).fill(name)
    page.get_by_role("button", name="Turn on the camera").click()
    button = page.locator("button.hold")
    button.filter(has_text=f"Hold to record {name}").wait_for()
    return button


def count(page, button, frames):
    """Wait until at least that many frames of the press have been recorded."""
    button.filter(has_text=re.compile("Recording")).wait_for()
    wait_until(lambda: int(re.search(r"\d+", button.inner_text())[0]) >= frames)


def recorded(page, name):
    """Return the number of frames that the last press recorded."""
    words = page.get_by_role("status").filter(has_text=re.compile(rf"{name}: \d+ frames recorded"))
    words.wait_for()
    return int(re.search(r"\d+", words.inner_text())[0])


def hold(page, button, name, frames):
    """Record with the mouse, then with the keyboard, at least ``frames`` each.

    Returns:
        The total number of frames.
    """
    button.hover()
    taken = 0
    for begin, end in (
        (page.mouse.down, page.mouse.up),
        (lambda: page.keyboard.down(" "), lambda: page.keyboard.up(" ")),
    ):
        button.focus()
        begin()
        count(page, button, frames)
        end()
        taken += recorded(page, name)
    page.get_by_text(f"{name} · {taken} frames · 2 recordings").wait_for()
    return taken


def stored_images(server, name):
    return sorted((server.home / "data" / "camera" / "objects" / name).glob("*.jpg"))


def predicted(page, name):
    page.get_by_role("button", name="Turn on the camera").click()
    page.locator(
        "[data-testid=stProgress] strong", has_text=re.compile(rf"^{name} · \d+ %")
    ).wait_for()
    page.get_by_text(re.compile(r"\d+\.\d predictions per second")).wait_for()


def test_two_classes_are_recorded_corrected_trained_on_and_classified_live(server, shown):
    pages = {name: shown(name) for name in ("cup", "pen")}
    for name, page in pages.items():
        taken = hold(page, open_camera(page, server, name), name, frames=15)
        assert len(stored_images(server, name)) == taken
        assert len({file.name.partition("_")[0] for file in stored_images(server, name)}) == 2
    page.locator("[data-testid=stCheckbox] label").first.click()
    page.get_by_role("button", name="Delete 1 frame").click()
    page.get_by_text("1 frame deleted.").wait_for()
    assert len(stored_images(server, "pen")) == taken - 1
    page.get_by_role("button", name="Train on it").click()
    page.get_by_text(re.compile("Training on .*objects.csv.* in 2 classes")).wait_for()
    page.get_by_text("Linear probe · no epochs").wait_for()
    page.get_by_role("button", name="Start training").click()
    page.wait_for_url(re.compile(r"/train\?.*run="))
    page.get_by_role("button", name="Try it with the camera").click()
    predicted(page, "pen")
    pages["cup"].goto(f"{server.url}/predict?{urlsplit(page.url).query}")
    pages["cup"].get_by_text("Live camera", exact=True).click()
    predicted(pages["cup"], "cup")
    page.get_by_role("button", name="Compare with fine-tuning").click()
    page.get_by_role("button", name="Start 7 runs").wait_for()
    page.get_by_text(re.compile(r"All on .*objects.csv")).wait_for()


def test_a_press_that_is_interrupted_loses_nothing(server, shown):
    page = shown("cup")
    button = open_camera(page, server, "cup")
    button.focus()
    page.keyboard.down(" ")
    count(page, button, 8)
    page.evaluate(HIDE, True)  # another tab is looked at
    first = recorded(page, "cup")
    page.get_by_text(f"cup · {first} frames · 1 recording").wait_for()
    page.evaluate(HIDE, False)
    page.keyboard.up(" ")
    button.filter(has_text="Hold to record cup").wait_for()  # the camera is turned on again
    button.focus()
    page.keyboard.down(" ")
    count(page, button, 8)
    page.locator("a[href*=runs]").evaluate(PRESS)  # some frames have not been sent yet
    page.get_by_role("heading", level=1, name="Runs").wait_for()
    page.get_by_role("link", name="Dataset").click()
    page.get_by_text(re.compile(r"cup · \d+ frames · 2 recordings")).wait_for()
    wait_until(lambda: page.get_by_text("still to be stored").count() == 0)
    presses = {}
    for file in stored_images(server, "cup"):
        press, _, number = file.stem.partition("_")
        presses.setdefault(press, []).append(int(number))
    assert len(presses) == 2
    for numbers in presses.values():
        assert len(numbers) >= 8
        assert numbers == list(range(len(numbers)))


def test_what_cannot_be_stored_is_said_and_waits_until_it_can(server, shown):
    page = shown("pen")
    button = open_camera(page, server, "pen")
    page.get_by_label("Class", exact=True).fill("cup/../pen")
    page.get_by_text("it becomes a folder, whose name cannot hold").wait_for()
    button.filter(has_text="Name a class first").wait_for()
    assert button.is_disabled()
    page.get_by_label("Class", exact=True).fill("pen")
    button.filter(has_text="Hold to record pen").wait_for()

    folder = server.home / "data" / "camera" / "objects"
    folder.mkdir(parents=True)
    (folder / "pen").write_text("in the way of the folder")
    button.focus()
    page.keyboard.down(" ")
    page.get_by_text("cannot be written to").wait_for()
    taken = recorded(page, "pen")  # the press has ended
    page.keyboard.up(" ")
    page.get_by_text(f"{taken} frames are still to be stored").wait_for()
    assert button.is_disabled()
    (folder / "pen").unlink()
    page.get_by_text(f"pen · {taken} frames · 1 recording").wait_for()
    button.filter(has_text="Hold to record pen").wait_for()
    assert button.is_enabled()
    # stays until the page has been drawn to its end
    page.get_by_text("cannot be written to").wait_for(state="detached")
    assert len(stored_images(server, "pen")) == taken


def test_without_a_camera_or_a_secure_address_the_page_says_what_to_do(start, tmp_path, tab):
    names = ("127.0.0.1", "thaw.test")
    server = start(tmp_path, options=[f"--server.allowedHosts={name}" for name in names])
    device, allowed = FAKE_CAMERA
    rule = "--host-resolver-rules=MAP thaw.test 127.0.0.1"
    for arguments, name, words in (
        ([allowed], names[0], "There is no camera on this device"),
        ([device], names[0], "The browser did not allow the camera"),
        ([device, allowed, rule], names[1], "Open Thaw as"),
    ):
        page = tab(*arguments)
        page.goto(f"http://{name}:{server.port}/dataset")
        page.get_by_text("Camera", exact=True).click()
        turn = page.get_by_role("button", name="Turn on the camera")
        turn.wait_for()
        if turn.is_enabled():
            turn.click()
        page.get_by_role("alert").filter(has_text=words).wait_for()
