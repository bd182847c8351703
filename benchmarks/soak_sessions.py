"""Visits of the sessions of ``soak.py``. Each does everything that a person does on one page."""

import io
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlencode

from PIL import Image, ImageEnhance
from playwright.async_api import FilePayload, Locator, Page

from finetune_core import paths
from finetune_core.data.recent import remember_source
from finetune_core.data.sample import write_digits_folder
from finetune_core.runs.store import Run, RunStore
from finetune_core.saved_settings import save_settings

SIZE = 32  # pixels
DEEP_SIZE = 64
# Only the first backbone comes with its weights.
BACKBONES = ("efficientnet_lite0", "resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5")
LATEST = 12  # number of runs to choose from
QUEUED = 2  # maximum number of runs: the one that trains and the next
MINUTE = 60_000  # ms
VERDICT = re.compile(r"on these \d+ images")  # end of its heading


@dataclass
class Session:
    """One person with a browser window.

    Attributes:
        name: name of the session.
        visits: the visits, which take turns.
        page: the window.
        url: address of the app.
        store: the app's runs.
        data: id of the data set to train on.
        random: random number generator of the session.
        done: action -> number of times it was completed.
        problems: exceptions and errors that the window has shown, and abandoned visits.
    """

    name: str
    visits: tuple["Visit", ...]
    page: Page
    url: str
    store: RunStore
    data: str
    random: Random
    done: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    async def open(self, path: str, **query: Any) -> None:
        """Open a page and wait until it is drawn."""
        await self.page.goto(f"{self.url}/{path}?{urlencode(query, doseq=True)}")
        await self.wait_until_drawn()

    async def wait_until_drawn(self) -> None:
        """Wait until the page is drawn. A click takes a moment to start a new draw."""
        await self.page.wait_for_timeout(300)
        await self.page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()

    async def press(self, name: str | re.Pattern[str]) -> bool:
        """Press a button if it is enabled. Return whether it was."""
        button = self.find_button(name)
        if not await button.count() or not await button.is_enabled():
            return False
        await button.click()
        return True

    def find_button(self, name: str | re.Pattern[str]) -> Locator:
        """Return the first button of a name."""
        return self.page.get_by_role("button", name=name).first

    async def wait_for_text(
        self, text: str | re.Pattern[str], timeout: float | None = None
    ) -> None:
        """Wait until a text is shown."""
        await self.page.get_by_text(text).first.wait_for(timeout=timeout)

    async def open_tab(self, name: str) -> None:
        """Open a tab."""
        await self.page.get_by_role("tab", name=name, exact=True).click()

    async def open_view(self, name: str) -> None:
        """Open a view of the Dataset page."""
        await self.page.get_by_role("radio", name=name, exact=True).click()

    async def choose(self, label: str) -> None:
        """Choose one of the first options of a box, by keyboard."""
        box = self.page.get_by_role("combobox", name=label).first
        await box.press("ArrowDown")
        await self.page.get_by_role("option").first.wait_for()
        for _ in range(self.random.randrange(5)):
            await box.press("ArrowDown")
        await box.press("Enter")
        await self.wait_until_drawn()

    async def upload(self, label: str, files: list[FilePayload]) -> None:
        """Upload files with the uploader of a label."""
        uploader = self.page.locator("[data-testid=stFileUploader]", has_text=label)
        await uploader.locator("input[type=file]").set_input_files(files)

    def list_evaluated(self) -> list[Run]:
        """Return the latest runs that have been evaluated."""
        return [run for run in self.store.list_runs() if run.is_evaluable][:LATEST]

    def choose_run(self) -> str:
        """Return the id of a random run that has been evaluated."""
        return self.random.choice(self.list_evaluated()).run_id


Visit = Callable[[Session], Awaitable[None]]


def make_pictures(random: Random, count: int) -> list[FilePayload]:
    """Return digits of random brightness, so that nothing is cached for them."""
    files = []
    for path in random.sample(sorted(write_digits_folder().glob("*/*.png")), count):
        buffer = io.BytesIO()
        ImageEnhance.Brightness(Image.open(path)).enhance(random.uniform(0.5, 1.5)).save(
            buffer, "PNG"
        )
        files.append(FilePayload(name=path.name, mimeType="image/png", buffer=buffer.getvalue()))
    return files


def make_data(random: Random, per_class: int = 30) -> Path:
    """Write a new data set of some of the digits."""
    folder = paths.data_dir() / f"some-{random.randrange(10**9)}"
    for label in sorted(write_digits_folder().iterdir()):
        (folder / label.name).mkdir(parents=True)
        for path in random.sample(sorted(label.glob("*.png")), per_class):
            shutil.copy(path, folder / label.name)
    return folder


def save_random_settings(
    random: Random, comparison: dict[str, Any] | None = None, **changed: Any
) -> str:
    """Save the settings of a short run with a random seed, and return their id."""
    one = {
        "image_size": SIZE,
        "epochs": 2,
        "learning_rate": 1e-3,
        "seed": random.randrange(10**6),
    } | changed
    return save_settings({"settings": one, "comparison": comparison or {}})


async def show_images(session: Session) -> None:
    """Predict a few images with one or two runs, and show the nearest training images."""
    run, second_run = session.choose_run(), session.choose_run()
    await session.open("predict", run=run, beside=[second_run])
    await session.upload("Images", make_pictures(session.random, 3))
    columns = 1 if run == second_run else 2
    await session.page.get_by_alt_text(re.compile("network input")).nth(3 * columns - 1).wait_for()
    session.done["images shown to a run, or two"] += 1
    await session.press("Show nearest training images")
    await session.wait_for_text("Nearest training images")
    session.done["neighbours"] += 1


async def name_many(session: Session) -> None:
    """Classify an archive of images with one or two runs."""
    await session.open("predict", run=session.choose_run(), beside=[session.choose_run()])
    await session.page.get_by_text("Archive", exact=True).click()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for one in make_pictures(session.random, 60):
            archive.writestr(one["name"], one["buffer"])
    upload = FilePayload(name="digits.zip", mimeType="application/zip", buffer=packed.getvalue())
    await session.upload("A ZIP or TAR archive of images", [upload])
    await session.find_button(re.compile("^Classify")).click()
    await session.wait_for_text(re.compile("60 images classified"))
    async with session.page.expect_download():
        await session.find_button("Download CSV").click()
    session.done["archives classified"] += 1


async def open_presentation(session: Session) -> None:
    """Predict an image on the page that a link for colleagues opens."""
    await session.open("predict", present=1, run=session.choose_run())
    await session.upload("Images", make_pictures(session.random, 1))
    await session.page.get_by_alt_text(re.compile("network input")).wait_for()
    session.done["presentations"] += 1


async def start_comparison(session: Session) -> None:
    """Start a comparison and wait for its verdict.

    It compares strategies of a pretrained network, or networks with random weights.
    """
    networks = session.random.random() < 0.5
    backbones = session.random.sample(BACKBONES, 2) if networks else []
    strategies = ["full"] if networks else ["feature_extraction", "last_block"]
    comparison = {"strategies": strategies, "seeds": 1, "backbones": backbones}
    weights = "none" if networks else "pretrained"
    await session.open(
        "compare",
        data=session.data,
        settings=save_random_settings(session.random, comparison, weights=weights),
    )
    start = session.find_button(re.compile(r"^\S* ?Start \d+ runs"))
    if not await start.is_visible():
        await session.page.get_by_text("Start a comparison", exact=True).click()
    await start.click()
    await session.wait_for_text(re.compile(r"\d of \d+ runs? done"))
    await session.page.get_by_role("heading", name=VERDICT).wait_for(timeout=8 * MINUTE)
    session.done["comparisons trained and read"] += 1


async def read_comparison(session: Session) -> None:
    """Read all parts of a comparison of two runs, and save its report."""
    same: dict[str, list[str]] = {}
    for run in session.list_evaluated():
        same.setdefault(run.started["fingerprint"], []).append(run.run_id)
    await session.open("compare", runs=session.random.sample(max(same.values(), key=len), 2))
    await session.page.get_by_role("heading", name=VERDICT).wait_for()
    for metric in ("Macro F1", "Log loss"):
        await (
            session.page.get_by_role("radio", name=metric)
            .or_(session.find_button(metric))
            .first.click()
        )
        await session.wait_until_drawn()
    session.done["comparisons read"] += 1
    measure, result = (
        session.find_button(re.compile(r"Measure \d+ runs?")),
        session.page.get_by_text("Which stage to thaw next"),
    )
    await measure.or_(result).first.wait_for()
    await session.press(re.compile(r"Measure \d+ runs?"))
    await result.first.wait_for()
    session.done["layers compared"] += 1
    images = session.page.get_by_text("Images with Grad-CAM")
    if await images.count():
        await images.click()
        await session.wait_for_text("network input")
        session.done["disagreements looked at"] += 1
    async with session.page.expect_download():
        await session.find_button("Report, one HTML file").click()
    session.done["reports"] += 1


async def explain_images(session: Session) -> None:
    """Show Grad-CAM of some images, and the images of a row of the confusion matrix."""
    await session.open("evaluate", run=session.choose_run())
    await session.page.get_by_text("All images, highest loss first").click()
    await session.wait_for_text(re.compile(r"loss \d"))
    await session.wait_until_drawn()
    thumbnails, dialog = (
        session.page.locator("[class*=st-key-open-losses] button"),
        session.page.get_by_role("dialog"),
    )
    for _ in range(3):
        await thumbnails.nth(session.random.randrange(await thumbnails.count())).click()
        await dialog.get_by_text(re.compile("map of")).first.wait_for()
        await session.page.keyboard.press("Escape")
        await dialog.wait_for(state="detached")
        session.done["Grad-CAM"] += 1
    await session.choose("True class")
    await session.wait_for_text(re.compile("the highest loss first$"))
    session.done["rows of the confusion matrix"] += 1


async def see_tabs(session: Session) -> None:
    """Open all tabs, and measure robustness."""
    await session.open("evaluate", run=session.choose_run())
    for name, text in (
        ("Metrics", "percentile bootstrap"),
        ("Curves", "Precision-recall"),
        ("Calibration", "Selective prediction"),
        ("Slices", re.compile("Accuracy by|There is no metadata")),
    ):
        await session.open_tab(name)
        await session.wait_for_text(text)
        session.done[name.lower()] += 1
    await session.open_tab("Robustness")
    await session.find_button(re.compile("Measure (on|again)")).wait_for()
    if await session.press(re.compile("Measure (on|again)")):
        await session.find_button("Stop").wait_for()
    await (
        session.find_button(re.compile("Measure again"))
        .and_(session.page.locator(":enabled"))
        .wait_for()
    )
    await session.wait_for_text("Most harmful")
    session.done["robustness"] += 1


async def analyze(session: Session) -> None:
    """Inspect a new data set: features, map, linear probe by layer.

    Then exclude an image, inspect again, and undo the exclusion.
    """
    data, settings_id = (
        remember_source(make_data(session.random)),
        save_random_settings(session.random, image_size=DEEP_SIZE),
    )
    await session.open("dataset", data=data, settings=settings_id)
    await session.find_button("Compare layers").click()
    await session.wait_for_text(re.compile("Suggested:|No suggestion|too few validation images"))
    session.done["deep inspections"] += 1
    await session.open_view("Map")
    await session.page.locator(".js-plotly-plot .nsewdrag").first.wait_for()
    await session.open_view("Preprocessing")
    await session.wait_for_text("Augmentation")
    await session.open_view("Images")
    await session.page.locator("[data-testid=stCheckbox] label").first.click()
    await session.find_button("Exclude 1 image").click()
    await session.find_button("Undo").wait_for()
    session.done["data sets changed"] += 1
    await session.find_button("Compare layers").click()
    await session.wait_for_text(re.compile("Suggested:|No suggestion|too few validation images"))
    session.done["deep inspections"] += 1
    await session.find_button("Undo").click()
    await session.find_button("Undo").wait_for(state="detached")


async def queue_run(session: Session) -> None:
    """Queue a run on Configure, and wait until the queue is nearly empty."""
    backbone = session.random.choice(BACKBONES)
    weights = "pretrained" if backbone == BACKBONES[0] else "none"
    strategy = (
        "full"
        if weights == "none"
        else session.random.choice(["last_block", "linear_probe_then_full", "bias_only"])
    )
    settings_id = save_random_settings(
        session.random, backbone=backbone, weights=weights, strategy=strategy, epochs=8
    )
    await session.open("configure", data=session.data, settings=settings_id)
    seed = session.page.get_by_label("Seed", exact=True)
    await seed.fill(str(session.random.randrange(10**6)))
    await seed.press("Enter")
    await session.wait_until_drawn()
    await session.find_button("Start training").click()
    await session.page.wait_for_url("**/train?run=*")
    session.done["runs queued"] += 1
    while sum(run.is_active for run in session.store.list_runs()) >= QUEUED:
        await session.page.wait_for_timeout(500)


SESSIONS: dict[str, tuple[Visit, ...]] = {
    "Predict, files": (show_images,),
    "Predict, archives": (name_many, show_images, open_presentation),
    "Compare, new": (start_comparison,),
    "Compare, layers": (read_comparison,),
    "Evaluate, Grad-CAM": (explain_images,),
    "Evaluate, all tabs": (see_tabs, explain_images),
    "Dataset": (analyze,),
    "Configure": (queue_run,),
}
