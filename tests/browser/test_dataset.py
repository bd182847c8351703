"""Dataset in a real browser: an archive is uploaded and corrected, and images are shown whole."""

import re
import shutil

import pytest
from PIL import Image

from tests.factories import image_folder

CUT_OFF = """() => [...document.querySelectorAll('[data-testid=stMain] img')].filter(image => {
    const inner = image.getBoundingClientRect()
    for (let box = image.parentElement; box; box = box.parentElement) {
        const outer = box.getBoundingClientRect()
        const hides = getComputedStyle(box).overflowX !== 'visible'
        if (hides && (inner.right > outer.right + 1 || inner.left < outer.left - 1)) return true
    }
}).map(image => image.alt)"""
DRAWN = """() => {
    const images = [...document.querySelectorAll('[data-testid=stMain] img')]
    return images.length >= 12 && images.every(image => image.naturalWidth)
}"""


@pytest.fixture
def archive(tmp_path):
    """Return a ZIP as a Mac makes it, with a text posing as an image and a copy across splits."""
    layout = {"train/red": 14, "train/blue": 14, "val/red": 5, "val/blue": 5}
    top = image_folder(tmp_path / "packed" / "pets", layout)
    (top / "train" / "red" / "note.png").write_text("no picture")
    shutil.copy(top / "train" / "red" / "000.png", top / "val" / "red" / "copy.png")
    (tmp_path / "packed" / "__MACOSX").mkdir()
    (tmp_path / "packed" / "__MACOSX" / "._000.png").write_bytes(b"x")
    return shutil.make_archive(str(tmp_path / "pets"), "zip", tmp_path / "packed")


def test_an_uploaded_archive_is_corrected_and_trained_on_and_the_run_says_so(server, page, archive):
    page.goto(re.sub(r"data=[^&]*&", "", server.address("dataset")))
    page.get_by_text("Upload", exact=True).click()
    page.locator("input[type=file]").set_input_files(archive)
    page.get_by_text("image copied across splits").wait_for()
    page.get_by_text("file left out: note.png").wait_for()
    page.get_by_role("radio", name="Images").click()
    page.get_by_text("Select images to exclude").wait_for()
    boxes = page.locator("[data-testid=stMain] [data-testid=stCheckbox] label")
    for number in range(3):
        boxes.nth(number).click()
        page.get_by_role("button", name=f"Exclude {number + 1} image").wait_for()
    page.get_by_role("button", name="Exclude 3 images").click()
    page.get_by_text("Changes to this data set: 3 images excluded").wait_for()
    page.get_by_role("button", name="Configure the training").click()
    page.get_by_text("with your changes (3 images excluded)").wait_for()
    page.get_by_text("Start training").click()
    page.wait_for_url(re.compile(r"/train\?.*run="))
    page.get_by_role("button", name="See the evaluation").wait_for()
    page.get_by_text("Trained with changes to the data set: 3 images excluded").click()
    page.get_by_text(re.compile(r"3 images excluded: pets/train/blue/000.png")).wait_for()


def test_no_image_of_a_finding_is_cut_off_however_wide_the_page_is(
    server, page, tmp_path, set_number
):
    for name, hue in (("Cat", 0), ("cats", 120)):
        folder = tmp_path / "pets" / name
        folder.mkdir(parents=True)
        for number in range(6):
            image = Image.radial_gradient("L")
            image = image.rotate(17 * number, translate=(20 * number, hue)).resize((96, 96))
            image.save(folder / f"{number}.png")
            image.save(folder / f"{number}-again.jpg", quality=70)
    page.goto(f"{server.url}/dataset")
    set_number("Folder, archive or manifest", tmp_path / "pets")
    page.locator(".st-key-review-similar_class_names button").click()
    page.get_by_role("button", name="Relabel 12 images of Cat as cats").wait_for()
    page.get_by_role("button", name="Configure the training").wait_for()
    for width in (1440, 390):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function(DRAWN)
        assert page.evaluate(CUT_OFF) == []
