"""Well-known public data sets, downloaded on request by torchvision.datasets.

They are written as ordinary image folders.
"""

import os
import re
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from finetune_core.data.splits import SPLITS, TEST, TRAIN
from finetune_core.errors import DataError
from finetune_core.files import publish_folder, staging_folder
from finetune_core.paths import data_dir
from finetune_core.work import Step, Work

_EVERY = 0.25  # seconds between two measurements of progress
_PATIENCE = 120  # seconds without a byte; covers checksums and slow disks
_DOWNLOADED = (".gz", ".tgz", ".zip", ".mat")  # suffixes of the published files
_NOT_IN_FILE_NAMES = re.compile(r'[<>:"/\\|?*]+')


@dataclass(frozen=True)
class PublicSet:
    """A data set that anyone may download.

    Attributes:
        name: the word that stands for the data set in place of a folder.
        title: full name.
        classes: number of classes.
        images: number of images.
        download_bytes: size of the download.
        disk_bytes: approximate size on a disk with blocks of 4 kB. During the import the download
            and its unpacked content need space, too.
        licence: what the authors say about its use.
        source: the authors' page.
        about: one sentence.
    """

    name: str
    title: str
    classes: int
    images: int
    download_bytes: int
    disk_bytes: int
    licence: str
    source: str
    about: str


PUBLIC_SETS: dict[str, PublicSet] = {
    known.name: known
    for known in (
        PublicSet(
            name="oxford_pets",
            title="Oxford-IIIT Pets",
            classes=37,
            images=7_349,
            download_bytes=811_092_049,
            disk_bytes=800_000_000,
            licence="CC BY-SA 4.0; the copyright remains with the owners of the photographs",
            source="https://www.robots.ox.ac.uk/~vgg/data/pets/",
            about="Photographs of 12 breeds of cats and 25 of dogs, about 200 each: "
            "close to what ImageNet networks know.",
        ),
        PublicSet(
            name="flowers102",
            title="Oxford 102 Flowers",
            classes=102,
            images=8_189,
            download_bytes=344_878_000,
            disk_bytes=360_000_000,
            licence="not stated by its authors; for research",
            source="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
            about="Photographs of flowers common in Britain, ten training images per class: "
            "many classes, few images.",
        ),
        PublicSet(
            name="eurosat",
            title="EuroSAT (RGB)",
            classes=10,
            images=27_000,
            download_bytes=94_280_567,
            disk_bytes=130_000_000,
            licence="MIT; made from free and open Copernicus Sentinel data",
            source="https://github.com/phelber/EuroSAT",
            about="Satellite images of 64 × 64 pixels by land use, fields to motorways: "
            "far from what ImageNet networks know.",
        ),
        PublicSet(
            name="fashion_mnist",
            title="Fashion-MNIST",
            classes=10,
            images=70_000,
            download_bytes=30_878_645,
            disk_bytes=290_000_000,
            licence="MIT",
            source="https://github.com/zalandoresearch/fashion-mnist",
            about="Grayscale images of clothing, 28 × 28 pixels: small and plain.",
        ),
        PublicSet(
            name="cifar10",
            title="CIFAR-10",
            classes=10,
            images=60_000,
            download_bytes=170_498_071,
            disk_bytes=250_000_000,
            licence="not stated by its authors; for research",
            source="https://www.cs.toronto.edu/~kriz/cifar.html",
            about="Colour photographs of animals and vehicles, 32 × 32 pixels: "
            "the classic small benchmark.",
        ),
    )
}


def public_set_folder(name: str) -> Path:
    """Return the folder of a public data set. It may not exist yet."""
    return data_dir() / name


def is_fetched(name: str) -> bool:
    """Return whether a public data set is on this machine. It is written whole or not at all."""
    return public_set_folder(name).is_dir()


def fetch_public(name: str) -> Work[Path]:
    """Download a public data set and write it as an image folder, all of it or nothing.

    If the folder exists, it is returned at once.

    Args:
        name: one of ``PUBLIC_SETS``.

    Yields:
        Steps that count bytes during download and unpacking (their total is an estimate), then
        images written.

    Returns:
        The folder: ``train/<class>/…``, ``val/<class>/…`` and ``test/<class>/…`` if the set has
            splits, else ``<class>/…``.

    Raises:
        DataError: without a network, if the download is not what was published, or if the folder
            cannot be written.
    """
    public, folder = PUBLIC_SETS[name], public_set_folder(name)
    if is_fetched(name):
        return folder
    try:
        with staging_folder(folder.parent, "fetching") as staging:
            download = _Download(public, staging)
            try:
                download.start()
                yield from _wait_for_download(download)
                yield from _write_images(download.parts, staging / name)
            finally:
                download.abandoned.set()
            publish_folder(staging / name, folder)
    except OSError as error:
        raise DataError(
            f"{public.title} cannot be written to {folder}: {error}. Nothing of it was kept. "
            "Set THAW_HOME to another folder, or make room there."
        ) from None
    return folder


class _DownloadAbandoned(Exception):
    """Raised in a download that nobody waits for any more."""


class _Download(threading.Thread):
    """Thread that runs torchvision's download of one set, which reports no progress.

    Attributes:
        parts: split (or ``""``) -> data set, after success.
        error: the exception, after a failure.
        abandoned: set once nobody waits for the download any more.
    """

    def __init__(self, public: PublicSet, staging: Path) -> None:
        super().__init__(name=f"fetch {public.name}", daemon=True)
        self.public = public
        self.staging = staging
        self.parts: dict[str, Any] = {}
        self.error: Exception | None = None
        self.abandoned = threading.Event()

    def run(self) -> None:
        """Download the set, and delete what was written if nobody waits any more."""
        try:
            self.parts = _download(self.public.name, self.staging / "download")
        except Exception as error:
            self.error = error
        finally:
            if self.abandoned.is_set():
                # Delete what was written after the caller had deleted the folder.
                shutil.rmtree(self.staging.parent, ignore_errors=True)


class _NullProgressBar:
    """Replacement of the progress bar that torchvision draws on stderr.

    It also ends a download that nobody waits for.
    """

    def __init__(self, **_: Any) -> None:
        pass

    def __enter__(self) -> "_NullProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, _: int) -> None:
        """End the download if nobody waits for it."""
        thread = threading.current_thread()
        if isinstance(thread, _Download) and thread.abandoned.is_set():
            raise _DownloadAbandoned


def _download(name: str, root: Path) -> dict[str, Any]:
    """Let torchvision download, check and unpack a set below ``root``.

    All code that depends on torchvision's internals is in this function.

    Returns:
        Split (or ``""``) -> a data set with ``classes`` and, at each index, (the image, or its
        file; label).
    """
    from torchvision import datasets  # imported late, because it imports torch

    class PetFiles(datasets.OxfordIIITPet):  # type: ignore[misc]  # torchvision has no types
        def __getitem__(self, index: int) -> tuple[Path, int]:
            # Private attributes, because this class alone takes no loader: it can only decode, and
            # encoding again would lose quality.
            return self._images[index], self._labels[index]

    # The progress bar has no switch, and would be drawn across the caller's output. If a later
    # torchvision does not use this name, the bar is back, and an abandoned download ends only with
    # its file.
    datasets.utils.tqdm = _NullProgressBar
    if name == "oxford_pets":
        return {TRAIN: PetFiles(root, "trainval", download=True), TEST: PetFiles(root, "test")}
    if name == "flowers102":
        return {
            split: datasets.Flowers102(root, split, download=True, loader=Path) for split in SPLITS
        }
    if name == "eurosat":
        return {"": datasets.EuroSAT(root, download=True, loader=Path)}
    kind = {"fashion_mnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10}[name]
    return {TRAIN: kind(root, train=True, download=True), TEST: kind(root, train=False)}


def _wait_for_download(download: _Download) -> Work[None]:
    """Yield (bytes so far, bytes in total) a few times a second until the download has ended."""
    total, before, since = download.public.download_bytes, 0, time.monotonic()
    going = True
    while going:
        download.join(_EVERY)
        going = download.is_alive()
        arrived, written = _count_bytes(download.staging)
        if written != before:
            before, since = written, time.monotonic()
        if time.monotonic() - since > _PATIENCE:  # torchvision itself has no timeout
            raise _download_error(download.public, f"nothing has arrived for {_PATIENCE} seconds")
        yield Step(min(arrived, total), total)
    if isinstance(download.error, (OSError, RuntimeError, HTTPException)):
        raise _download_error(download.public, _describe_reason(download.error))
    if download.error:
        raise download.error


def _count_bytes(folder: Path) -> tuple[int, int]:
    """Return the bytes of downloaded files, and of all files."""
    downloaded = written = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            with suppress(OSError):  # the file may have been deleted meanwhile
                size = os.path.getsize(os.path.join(parent, file))
                written += size
                downloaded += size if file.endswith(_DOWNLOADED) else 0
    return downloaded, written


def _write_images(parts: dict[str, Any], folder: Path) -> Work[None]:
    """Move or save every image to its class's folder; yield (images so far, images in total)."""
    done, total = 0, sum(len(part) for part in parts.values())
    for split, part in parts.items():
        names = [_folder_name(title) for title in part.classes]
        for index in range(len(part)):
            image, label = part[index]
            target = folder / split / names[label]
            target.mkdir(parents=True, exist_ok=True)
            if isinstance(image, Path):
                os.rename(image, target / image.name)
            else:
                image.save(target / f"{index:05d}.png")
            done += 1
            yield Step(done, total)


def _folder_name(title: str) -> str:
    """Replace the characters that some file system refuses: ``T-shirt/top`` -> ``T-shirt-top``."""
    return _NOT_IN_FILE_NAMES.sub("-", title).strip(" .-")


def _describe_reason(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return " ".join(str(reason).split()).rstrip(".") or type(reason).__name__


def _download_error(public: PublicSet, reason: str) -> DataError:
    return DataError(
        f"{public.title} could not be downloaded ({reason}). Nothing of it was kept. "
        "Try again later, or use a folder or archive of your own, or the word digits."
    )
