"""Images stand beside each other whole, in a real browser: a small set of handmade pictures, wide and on a phone."""

import pytest
from PIL import Image

CUT_OFF = """() => [...document.querySelectorAll('[data-testid=stMain] img')].filter(image => {
    const inner = image.getBoundingClientRect();
    for (let box = image.parentElement; box; box = box.parentElement) {
        const outer = box.getBoundingClientRect();
        if (getComputedStyle(box).overflowX !== 'visible' && (inner.right > outer.right + 1 || inner.left < outer.left - 1)) return true;
    }
    return false;
}).map(image => image.alt)"""

DRAWN = """() => {
    const images = [...document.querySelectorAll('[data-testid=stMain] img')];
    return images.length >= 12 && images.every(image => image.naturalWidth);
}"""


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Two classes whose names are alike, with pictures that were saved again."""
    monkeypatch.setenv("THAW_DATA_ROOTS", str(tmp_path))
    for name, hue in (("Cat", 0), ("cats", 120)):
        folder = tmp_path / "pets" / name
        folder.mkdir(parents=True)
        for number in range(6):
            image = (
                Image.radial_gradient("L")
                .rotate(17 * number, translate=(20 * number, hue))
                .resize((96, 96))
            )
            image.save(folder / f"{number}.png")
            image.save(folder / f"{number}-again.jpg", quality=70)
    return tmp_path / "pets"


@pytest.mark.parametrize("width", [1440, 390])
def test_no_image_of_a_finding_is_cut_off(data, server, page, no_error_on, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"{server.url}/dataset")
    page.get_by_label("Folder, archive or manifest", exact=True).fill(str(data))
    page.get_by_label("Folder, archive or manifest", exact=True).press("Enter")
    page.get_by_text("Possible near-duplicates:").wait_for()
    page.get_by_role("button", name="Relabel 12 images of Cat as cats").wait_for()
    page.get_by_role("button", name="Configure the training").wait_for()
    page.wait_for_function(DRAWN)
    assert page.evaluate(CUT_OFF) == []
    no_error_on(page)
