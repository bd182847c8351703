"""Visits of the sessions of ``soak.py``: each function does on one page all that a person does there."""

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
from finetune_core.data.recent import remember
from finetune_core.data.sample import digits_folder
from finetune_core.runs.store import Run, RunStore
from finetune_core.saved_settings import save_settings

SIZE = 32  # pixels
DEEP_SIZE = 64
# the first has its weights
BACKBONES = ("efficientnet_lite0", "resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5")
LATEST = 12  # runs to choose from
QUEUED = 2  # runs, at most: the one that trains, and the next
MINUTE = 60_000  # ms
VERDICT = re.compile(r"on these \d+ images")  # how its heading ends


@dataclass
class Session:
    """One person with a browser window.

    Attributes:
        visits: what it does, in turn.
        data: the id of the data set that is trained on.
        done: action -> how often it came to its end.
        problems: boxes of exceptions and of errors that its window has shown, and visits that did not come to their end.
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
        await self.page.goto(f"{self.url}/{path}?{urlencode(query, doseq=True)}")
        await self.settled()

    async def settled(self) -> None:
        """Until the page is drawn to its end; a click needs a moment to be noticed."""
        await self.page.wait_for_timeout(300)
        await self.page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()

    async def press(self, name: str | re.Pattern[str]) -> bool:
        """Press a button if it is there and can be pressed; returns whether it was."""
        button = self.button(name)
        if not await button.count() or not await button.is_enabled():
            return False
        await button.click()
        return True

    def button(self, name: str | re.Pattern[str]) -> Locator:
        return self.page.get_by_role("button", name=name).first

    async def see(self, text: str | re.Pattern[str], timeout: float | None = None) -> None:
        await self.page.get_by_text(text).first.wait_for(timeout=timeout)

    async def tab(self, name: str) -> None:
        await self.page.get_by_role("tab", name=name, exact=True).click()

    async def view(self, name: str) -> None:
        """Open a view of the Dataset page."""
        await self.page.get_by_role("radio", name=name, exact=True).click()

    async def choose(self, label: str) -> None:
        """Take one of the first few that a box offers, by keyboard."""
        box = self.page.get_by_role("combobox", name=label).first
        await box.press("ArrowDown")
        await self.page.get_by_role("option").first.wait_for()
        for _ in range(self.random.randrange(5)):
            await box.press("ArrowDown")
        await box.press("Enter")
        await self.settled()

    async def upload(self, label: str, files: list[FilePayload]) -> None:
        """Give files to the uploader of that label."""
        uploader = self.page.locator("[data-testid=stFileUploader]", has_text=label)
        await uploader.locator("input[type=file]").set_input_files(files)

    def evaluated(self) -> list[Run]:
        """The latest runs that can be looked at."""
        return [run for run in self.store.runs() if run.judged][:LATEST]

    def run(self) -> str:
        return self.random.choice(self.evaluated()).run_id


Visit = Callable[[Session], Awaitable[None]]


def pictures(random: Random, count: int) -> list[FilePayload]:
    """Digits in a light of their own, so that nothing is known of them yet."""
    found = []
    for path in random.sample(sorted(digits_folder().glob("*/*.png")), count):
        buffer = io.BytesIO()
        ImageEnhance.Brightness(Image.open(path)).enhance(random.uniform(0.5, 1.5)).save(
            buffer, "PNG"
        )
        found.append(FilePayload(name=path.name, mimeType="image/png", buffer=buffer.getvalue()))
    return found


def new_data(random: Random, per_class: int = 30) -> Path:
    """A data set that nobody has opened yet: some of the digits."""
    folder = paths.data_dir() / f"some-{random.randrange(10**9)}"
    for label in sorted(digits_folder().iterdir()):
        (folder / label.name).mkdir(parents=True)
        for path in random.sample(sorted(label.glob("*.png")), per_class):
            shutil.copy(path, folder / label.name)
    return folder


def settings(random: Random, comparison: dict[str, Any] | None = None, **changed: Any) -> str:
    """The id of settings of a short run, as an address holds it; each has a seed of its own."""
    one = {
        "image_size": SIZE,
        "epochs": 2,
        "learning_rate": 1e-3,
        "seed": random.randrange(10**6),
    } | changed
    return save_settings({"settings": one, "comparison": comparison or {}})


async def show_images(session: Session) -> None:
    """A few images to one run or two, and the training images like them."""
    run, beside = session.run(), session.run()
    await session.open("predict", run=run, beside=[beside])
    await session.upload("Images", pictures(session.random, 3))
    columns = 1 if run == beside else 2
    await session.page.get_by_alt_text(re.compile("network input")).nth(3 * columns - 1).wait_for()
    session.done["images shown to a run, or two"] += 1
    await session.press("Show nearest training images")
    await session.see("Nearest training images")
    session.done["neighbours"] += 1


async def name_many(session: Session) -> None:
    """An archive of images, classified by one run or two."""
    await session.open("predict", run=session.run(), beside=[session.run()])
    await session.page.get_by_text("Archive", exact=True).click()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for one in pictures(session.random, 60):
            archive.writestr(one["name"], one["buffer"])
    given = FilePayload(name="digits.zip", mimeType="application/zip", buffer=packed.getvalue())
    await session.upload("A ZIP or TAR archive of images", [given])
    await session.button(re.compile("^Classify")).click()
    await session.see(re.compile("60 images classified"))
    async with session.page.expect_download():
        await session.button("Download CSV").click()
    session.done["archives classified"] += 1


async def present(session: Session) -> None:
    """What a colleague opens."""
    await session.open("predict", present=1, run=session.run())
    await session.upload("Images", pictures(session.random, 1))
    await session.page.get_by_alt_text(re.compile("network input")).wait_for()
    session.done["presentations"] += 1


async def start_comparison(session: Session) -> None:
    """Strategies of a pretrained network, or networks from random weights, until their verdict."""
    networks = session.random.random() < 0.5
    backbones = session.random.sample(BACKBONES, 2) if networks else []
    strategies = ["full"] if networks else ["feature_extraction", "last_block"]
    comparison = {"strategies": strategies, "seeds": 1, "backbones": backbones}
    weights = "none" if networks else "pretrained"
    await session.open(
        "compare", data=session.data, settings=settings(session.random, comparison, weights=weights)
    )
    start = session.button(re.compile(r"^\S* ?Start \d+ runs"))
    if not await start.is_visible():
        await session.page.get_by_text("Start a comparison", exact=True).click()
    await start.click()
    await session.see(re.compile(r"\d of \d+ runs? done"))
    await session.page.get_by_role("heading", name=VERDICT).wait_for(timeout=8 * MINUTE)
    session.done["comparisons trained and read"] += 1


async def read_comparison(session: Session) -> None:
    """Two runs on the same images: by each measure, where they disagree, what moved, and the report."""
    same: dict[str, list[str]] = {}
    for run in session.evaluated():
        same.setdefault(run.started["fingerprint"], []).append(run.run_id)
    await session.open("compare", runs=session.random.sample(max(same.values(), key=len), 2))
    await session.page.get_by_role("heading", name=VERDICT).wait_for()
    for metric in ("Macro F1", "Log loss"):
        await (
            session.page.get_by_role("radio", name=metric).or_(session.button(metric)).first.click()
        )
        await session.settled()
    session.done["comparisons read"] += 1
    measure, measured = (
        session.button(re.compile(r"Measure \d+ runs?")),
        session.page.get_by_text("Which stage to thaw next"),
    )
    await measure.or_(measured).first.wait_for()
    await session.press(re.compile(r"Measure \d+ runs?"))
    await measured.first.wait_for()
    session.done["layers compared"] += 1
    images = session.page.get_by_text("Images with Grad-CAM")
    if await images.count():
        await images.click()
        await session.see("network input")
        session.done["disagreements looked at"] += 1
    async with session.page.expect_download():
        await session.button("Report, one HTML file").click()
    session.done["reports"] += 1


async def explain_images(session: Session) -> None:
    """Grad-CAM of some images, and the images of a row of the confusion matrix."""
    await session.open("evaluate", run=session.run())
    await session.page.get_by_text("All images, highest loss first").click()
    await session.see(re.compile(r"loss \d"))
    await session.settled()
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
    await session.see(re.compile("the highest loss first$"))
    session.done["rows of the confusion matrix"] += 1


async def see_tabs(session: Session) -> None:
    """All tabs, and robustness."""
    await session.open("evaluate", run=session.run())
    for name, text in (
        ("Metrics", "percentile bootstrap"),
        ("Curves", "Precision-recall"),
        ("Calibration", "Selective prediction"),
        ("Slices", re.compile("Accuracy by|There is no metadata")),
    ):
        await session.tab(name)
        await session.see(text)
        session.done[name.lower()] += 1
    await session.tab("Robustness")
    await session.button(re.compile("Measure (on|again)")).wait_for()
    if await session.press(re.compile("Measure (on|again)")):
        await session.button("Stop").wait_for()
    await (
        session.button(re.compile("Measure again"))
        .and_(session.page.locator(":enabled"))
        .wait_for()
    )
    await session.see("Most harmful")
    session.done["robustness"] += 1


async def analyze(session: Session) -> None:
    """A new data set: its features, the map, a linear probe by layer; then without one of its images."""
    data, chosen = (
        remember(new_data(session.random)),
        settings(session.random, image_size=DEEP_SIZE),
    )
    await session.open("dataset", data=data, settings=chosen)
    await session.button("Compare layers").click()
    await session.see(re.compile("Suggested:|No suggestion|too few validation images"))
    session.done["deep inspections"] += 1
    await session.view("Map")
    await session.page.locator(".js-plotly-plot .nsewdrag").first.wait_for()
    await session.view("Preprocessing")
    await session.see("Augmentation")
    await session.view("Images")
    await session.page.locator("[data-testid=stCheckbox] label").first.click()
    await session.button("Exclude 1 image").click()
    await session.button("Undo").wait_for()
    session.done["data sets changed"] += 1
    await session.button("Compare layers").click()
    await session.see(re.compile("Suggested:|No suggestion|too few validation images"))
    session.done["deep inspections"] += 1
    await session.button("Undo").click()
    await session.button("Undo").wait_for(state="detached")


async def queue_run(session: Session) -> None:
    """A run from Configure, watched until the queue is nearly empty."""
    backbone = session.random.choice(BACKBONES)
    weights = "pretrained" if backbone == BACKBONES[0] else "none"
    strategy = (
        "full"
        if weights == "none"
        else session.random.choice(["last_block", "linear_probe_then_full", "bias_only"])
    )
    chosen = settings(
        session.random, backbone=backbone, weights=weights, strategy=strategy, epochs=8
    )
    await session.open("configure", data=session.data, settings=chosen)
    seed = session.page.get_by_label("Seed", exact=True)
    await seed.fill(str(session.random.randrange(10**6)))
    await seed.press("Enter")
    await session.settled()
    await session.button("Start training").click()
    await session.page.wait_for_url("**/train?run=*")
    session.done["runs queued"] += 1
    while sum(run.active for run in session.store.runs()) >= QUEUED:
        await session.page.wait_for_timeout(500)


SESSIONS: dict[str, tuple[Visit, ...]] = {
    "Predict, files": (show_images,),
    "Predict, archives": (name_many, show_images, present),
    "Compare, new": (start_comparison,),
    "Compare, layers": (read_comparison,),
    "Evaluate, Grad-CAM": (explain_images,),
    "Evaluate, all tabs": (see_tabs, explain_images),
    "Dataset": (analyze,),
    "Configure": (queue_run,),
}
