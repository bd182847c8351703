"""The quick inspection finds defects of every kind that are planted into a real data set."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from finetune_core.data.dataset import load_dataset
from finetune_core.data.sample import write_digits_folder

pytestmark = pytest.mark.train
CLASSES = [str(digit) for digit in range(10)]


def encode_image(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


NEARLY = {
    "-saved-again.jpg": lambda image: encode_image(image, "JPEG", quality=60),
    "-scaled.png": lambda image: encode_image(image.resize((48, 48), Image.Resampling.BILINEAR)),
    "-brightened.png": lambda image: encode_image(ImageEnhance.Brightness(image).enhance(1.2)),
}


class Planted:
    """The digits in train/ and val/, and the planted defects."""

    def __init__(self, folder, digits):
        self.folder = folder
        self.random = np.random.default_rng(0)
        self.sources = []  # training images that nothing was planted from yet
        self.truth = {}  # kind -> {planted path: the path it comes from}
        for name in CLASSES:
            for number, file in enumerate(sorted((digits / name).glob("*.png"))[:66]):
                target = f"{'val' if number % 6 == 0 else 'train'}/{name}/{file.name}"
                (folder / target).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, folder / target)
                self.sources += [target] if target.startswith("train") else []
        self.random.shuffle(self.sources)

    def source(self):
        return self.sources.pop()

    def plant(self, kind, target, content, source=""):
        (self.folder / target).write_bytes(content)
        self.truth.setdefault(kind, {})[target] = source

    def content(self, source):
        return (self.folder / source).read_bytes()

    def opened(self, source):
        return Image.open(self.folder / source).convert("RGB")

    def noise(self, width=64, height=64, levels=256):
        return Image.fromarray(self.random.integers(0, levels, (height, width), np.uint8))

    def corrupt(self):
        source = self.source()
        png, jpeg = self.content(source), encode_image(self.opened(source), "JPEG")
        share = self.random.uniform(0.3, 0.95)
        self.plant("damaged", source.replace(".png", "-short.png"), png[: int(len(png) * share)])
        self.plant("damaged", source.replace(".png", "-short.jpg"), jpeg[: int(len(jpeg) * 0.9)])
        self.plant("empty_file", source.replace(".png", "-empty.png"), b"")
        self.plant("unreadable", source.replace(".png", "-text.png"), b"this is no picture\n" * 20)

    def copied(self):
        source = self.source()
        self.plant(
            "exact_duplicates", source.replace(".png", "-copy.png"), self.content(source), source
        )
        source = self.source()
        self.plant(
            "leakage",
            source.replace("train/", "val/").replace(".png", "-leak.png"),
            self.content(source),
            source,
        )
        source = self.source()
        _, label, name = source.split("/")
        other = CLASSES[(int(label) + 3) % 10]
        self.plant("conflicting_labels", f"train/{other}/{name}", self.content(source), source)

    def nearly_copied(self, ending):
        for kind, split in (("near_duplicates", "train/"), ("near_leakage", "val/")):
            source = self.source()
            self.plant(
                kind,
                source.replace("train/", split).replace(".png", ending),
                NEARLY[ending](self.opened(source)),
                source,
            )

    def single_ones(self):
        self.plant("wrong_extension", "train/1/png-inside.jpg", encode_image(self.noise()))
        self.plant("dark", "train/2/night.png", encode_image(self.noise(levels=32)))
        self.plant(
            "bright",
            "train/3/snow.png",
            encode_image(self.noise(levels=28).point(lambda value: 255 - value)),
        )
        self.plant(
            "uniform", "train/4/wall.png", encode_image(Image.new("RGB", (64, 64), (140, 150, 160)))
        )
        self.plant("extreme_aspect", "val/5/banner.png", encode_image(self.noise(300)))
        self.plant("tiny", "train/6/icon.png", encode_image(self.noise(16, 16)))
        film = encode_image(
            self.noise(), "GIF", save_all=True, append_images=[self.noise(), self.noise()]
        )
        self.plant("animated", "train/7/film.gif", film)
        self.plant(
            "odd_mode",
            "train/8/print.jpg",
            encode_image(Image.merge("CMYK", [self.noise() for _ in range(4)]), "JPEG"),
        )
        wide = Image.fromarray(self.random.integers(0, 2**16, (64, 64), np.uint16))
        self.plant("odd_mode", "val/9/scan.png", encode_image(wide))


@pytest.fixture(scope="module")
def planted(home_of_shared_fixtures, tmp_path_factory):
    done = Planted(tmp_path_factory.mktemp("planted"), write_digits_folder())
    for _ in range(8):
        done.corrupt()
        done.copied()
        for ending in NEARLY:
            done.nearly_copied(ending)
    done.single_ones()
    done.dataset = load_dataset(done.folder)
    return done


def find_finding(dataset, kind):
    return next((one for one in dataset.findings if one.kind == kind), None)


def is_in_one_set(dataset, kind, *paths):
    return any(set(paths) <= set(one) for one in find_finding(dataset, kind).sets)


SINGLE = ["wrong_extension", "dark", "bright", "uniform", "extreme_aspect", "tiny", "animated"]


def test_every_defect_is_found_and_no_other(planted):
    dataset, truth = planted.dataset, planted.truth
    for kind in ("damaged", "empty_file", "unreadable"):
        found = find_finding(dataset, kind)
        assert set(found.paths) == set(truth[kind])
        assert found.count == len(truth[kind]) >= 8
        assert not set(found.paths) & set(dataset.table["id"])
    for kind in (*SINGLE, "odd_mode"):
        assert set(find_finding(dataset, kind).paths) == set(truth[kind])
    accusations = {"few_images", "imbalance", "similar_class_names", "single_class"}
    assert not {one.kind for one in dataset.findings} & accusations


def test_every_copy_is_found_and_no_other(planted):
    dataset, truth = planted.dataset, planted.truth
    for kind in ("exact_duplicates", "leakage"):
        assert all(is_in_one_set(dataset, kind, *pair) for pair in truth[kind].items())
    assert find_finding(dataset, "exact_duplicates").count == len(truth["exact_duplicates"])
    leaks = find_finding(dataset, "leakage")
    assert set(leaks.paths) == set(truth["leakage"].values())
    share = len(truth["leakage"]) / (dataset.table["split"] == "val").sum()
    assert f"up to {100 * share:.1f} % too high" in leaks.message
    conflicts = truth["conflicting_labels"]
    assert set(find_finding(dataset, "conflicting_labels").paths) == {
        *conflicts,
        *conflicts.values(),
    }
    for kind in ("near_duplicates", "near_leakage"):
        assert len(truth[kind]) == 24
        found = [is_in_one_set(dataset, kind, *pair) for pair in truth[kind].items()]
        assert np.mean(found) >= 0.9
        others = (
            set(find_finding(dataset, kind).paths) - set(truth[kind]) - set(truth[kind].values())
        )
        assert len(others) < 0.03 * len(dataset.table)


def test_actions_that_are_offered_clean_the_set(planted):
    edits = [edit for one in planted.dataset.findings for edit in one.make_edits(one.paths)]
    after = load_dataset(planted.folder, edits=edits)
    kept = {"damaged", "empty_file", "unreadable", "wrong_extension", "odd_mode", "no_test_split"}
    left = {one.kind for one in after.findings} - kept
    assert left <= {"near_duplicates"}  # of what moved to training
    edits += [edit for one in after.findings for edit in one.make_edits(one.paths)]
    again = load_dataset(planted.folder, edits=edits)
    for kind in ("near_duplicates", "leakage", "near_leakage"):
        assert find_finding(again, kind) is None
