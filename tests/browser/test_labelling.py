"""Labelling in a real browser: many keys a second, and a reload between them."""

import random
import shutil

import pytest

from finetune_core.data.edits import load_edits
from finetune_core.data.recent import remember_source
from finetune_core.labelling.answers import NONE_OF_THESE, SKIPPED
from finetune_core.labelling.pool import add_folder
from tests.deadline import wait_until
from tests.factories import image_folder

IMAGES, KEYS, HELD = 300, 220, 160
GAP = 200  # milliseconds between keys
MEANS = {"1": "green", "2": "red", "ArrowRight": SKIPPED, "0": NONE_OF_THESE}
# Which image was on show when a key was pressed: this listener is there before the component's.
RECORD = """() => {
    window.pressed = []
    performance.setResourceTimingBufferSize(1000) // Streamlit alone loads 200 files
    window.addEventListener('keydown', event => {
        const parents = [...document.querySelectorAll('*')].filter(one => one.shadowRoot)
        const image = parents.map(one => one.shadowRoot.querySelector('.picture img')).find(Boolean)
        // nothing but a skip answers an image that is not loaded
        const answers = image && (image.naturalWidth || event.key === 'ArrowRight')
        window.pressed.push([answers ? image.alt : null, event.key])
    }, true)
}"""
LOADED = f"""() => performance.getEntriesByType('resource')
    .filter(one => one.name.includes('/media/')).length >= {HELD}"""


@pytest.fixture
def data(server, tmp_path, monkeypatch):
    """Return a data set of two classes on the server, with images to label."""
    monkeypatch.setenv("THAW_HOME", str(server.home))
    folder = image_folder(tmp_path / "data", {"green": 12, "red": 12})
    image_folder(tmp_path / "loose", {"any": IMAGES})
    add_folder(folder, str(tmp_path / "loose"))
    return folder


@pytest.fixture
def label(server, page, data):
    """Open a page on the images to label."""
    page.add_init_script(f"({RECORD})()")
    page.goto(f"{server.url}/dataset?data={remember_source(data)}")
    show_images(page)
    return page


def show_images(page):
    page.get_by_role("radio", name="Label", exact=True).click()
    page.locator(".picture img").wait_for()


def press(page, keys):
    """Press keys, the last five at once; return the answered images with their answers."""
    for number, key in enumerate(keys):
        page.keyboard.press(key)
        if number < len(keys) - 5:
            page.wait_for_timeout(GAP)
    return [(alt, MEANS[key]) for alt, key in page.evaluate("window.pressed") if alt]


def test_one_key_answers_nine_images_but_those_that_are_left_out(label, data, tmp_path):
    label.get_by_role("radio", name="Nine", exact=True).click()
    tiles = label.locator(".tile")
    wait_until(lambda: tiles.count() == 9)
    label.wait_for_function(LOADED)
    names = [tiles.nth(at).locator("img").get_attribute("alt") for at in range(9)]
    proposals = {tiles.nth(at).inner_text().strip() for at in range(9)}
    assert proposals in ({"green"}, {"red"}), "one key is right for all of them or for none"
    for at in (2, 6):
        tiles.nth(at).click()
    label.get_by_text("7 of 9 chosen").wait_for()
    label.keyboard.press("1")
    label.get_by_text("2 of 2 chosen").wait_for()
    left = [names[2], names[6]]
    wait_until(lambda: sorted(kept(data)) == [(n, "green") for n in sorted({*names} - {*left})])
    label.keyboard.press("2")
    wait_until(lambda: kept(data)[7:] == [(name, "red") for name in left])
    wait_until(lambda: tiles.count() == 9)
    label.keyboard.press("Backspace")
    wait_until(lambda: len(kept(data)) == 7)
    assert [tiles.nth(at).locator("img").get_attribute("alt") for at in range(2)] == left


def test_an_uploaded_archive_is_added_to_the_queue(label, tmp_path):
    image_folder(tmp_path / "more", {"other": 4})
    archive = shutil.make_archive(str(tmp_path / "more"), "zip", tmp_path / "more")
    label.get_by_text("Folders without labels").click()
    label.get_by_role("radio", name="Upload", exact=True).click()
    label.locator("input[type=file]").set_input_files(archive)
    label.get_by_text(f"{IMAGES + 4} to label").wait_for()


def kept(data):
    return [(edit.paths[0].split("/")[-1], edit.to or edit.kind) for edit in load_edits(data)]


def test_each_key_of_a_burst_is_one_edit_in_order_also_across_a_reload(label, data):
    keys = random.Random(0).choices([*MEANS], weights=(4, 4, 1, 1), k=KEYS)
    label.wait_for_function(LOADED)
    pressed = press(label, keys[: KEYS // 2])
    label.reload()
    show_images(label)
    label.wait_for_function(LOADED)
    pressed += press(label, keys[KEYS // 2 :])
    # on a machine that is busy with other tests, a key may come before the next image
    assert len(pressed) > KEYS / 2
    wait_until(lambda: len(load_edits(data)) >= len(pressed))
    assert kept(data) == pressed
    for left in (len(pressed) - 1, len(pressed) - 2):
        label.keyboard.press("Backspace")
        wait_until(lambda left=left: kept(data) == pressed[:left])
    assert label.locator(".picture img").get_attribute("alt") == pressed[-2][0]


def test_a_new_class_has_a_key_and_an_order_starts_with_the_image_that_it_is_by(label, data):
    name = label.get_by_label("New class", exact=True)
    for number in range(3, 13):
        name.fill(f"class {number}")
        name.press("Enter")
        label.locator(".classes button", has_text=f"class {number}").wait_for()
    label.keyboard.press("c")  # by itself, Streamlit would clear its caches
    wait_until(lambda: [to for _, to in kept(data)] == ["class 12"])
    alt = label.locator(".picture img").get_attribute("alt")
    label.get_by_role("button", name="More like this").click()
    label.get_by_text(f"Like {alt}").wait_for()
    label.locator(f".picture img[alt='{alt}']").wait_for()
    label.keyboard.press("0")
    wait_until(lambda: kept(data)[1:] == [(alt, NONE_OF_THESE)])
