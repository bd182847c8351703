import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import os
import pickle
import socket
import struct
import tarfile
import threading
import time
import zipfile
from collections import Counter
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from finetune_core.data import public
from finetune_core.data.dataset import load_dataset
from finetune_core.data.public import PUBLIC_SETS, fetch_public, is_fetched, public_set_folder
from finetune_core.errors import DataError
from finetune_core.work import Step
from tests.drain import drain

PETS = {
    "Abyssinian": "Abyssinian",
    "american_bulldog": "American Bulldog",
    "Egyptian_Mau": "Egyptian Mau",
}
LAND = ["AnnualCrop", "Forest", "SeaLake"]
CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def shade(label):
    """Return the mean gray level of a class's images."""
    return 20 + 2 * label


def pixels(label, number, width, height):
    """Return ``[height, width]`` of light and dark pixels around the class's mean.

    Each image has them in another order.
    """
    signs = np.random.default_rng([label, number]).permutation(
        np.repeat([-15, 15], width * height // 2)
    )
    return np.uint8(shade(label) + signs).reshape(height, width)


def jpeg(label, number):
    file = io.BytesIO()
    Image.fromarray(pixels(label, number, 24, 20)).convert("RGB").save(file, "JPEG", quality=95)
    return file.getvalue()


def tar(files):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def mat(**arrays):
    file = io.BytesIO()
    savemat(file, arrays)
    return file.getvalue()


@functools.cache
def pets():
    """Return four training images and two test images per breed."""
    images, lists = {}, {"trainval": "", "test": ""}
    for label, breed in enumerate(PETS):
        for number in range(6):
            images[f"images/{breed}_{number}.jpg"] = jpeg(label, number)
            lists["trainval" if number < 4 else "test"] += f"{breed}_{number} {label + 1} 1 1\n"
    lists = {f"annotations/{name}.txt": text.encode() for name, text in lists.items()}
    return {
        "images.tar.gz": tar(images),
        "annotations.tar.gz": tar(lists | {"annotations/trimaps/none.png": b""}),
    }


@functools.cache
def flowers():
    """Return two training images, a validation image and a test image per class."""
    numbers = np.arange(1, 4 * 102 + 1)
    labels = (numbers - 1) % 102
    return {
        "102flowers.tgz": tar(
            {
                f"jpg/image_{n:05d}.jpg": jpeg(label, n)
                for n, label in zip(numbers, labels, strict=True)
            }
        ),
        "imagelabels.mat": mat(labels=labels + 1),
        "setid.mat": mat(trnid=numbers[:204], valid=numbers[204:306], tstid=numbers[306:]),
    }


@functools.cache
def land():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for label, name in enumerate(LAND):
            for number in range(5):
                archive.writestr(f"2750/{name}/{name}_{number}.jpg", jpeg(label, number))
    return {"EuroSAT.zip": packed.getvalue()}


@functools.cache
def fashion():
    files = {}
    for prefix, count in (("train", 40), ("t10k", 20)):
        labels = np.uint8(np.arange(count) % 10)
        images = b"".join(
            pixels(label, number + count, 28, 28).tobytes() for number, label in enumerate(labels)
        )
        files[f"{prefix}-images-idx3-ubyte.gz"] = gzip.compress(
            struct.pack(">4I", 0x803, count, 28, 28) + images
        )
        files[f"{prefix}-labels-idx1-ubyte.gz"] = gzip.compress(
            struct.pack(">2I", 0x801, count) + labels.tobytes()
        )
    return files


@functools.cache
def cifar_batches():
    def batch(first):
        labels = [(first + number) % 10 for number in range(10)]
        data = np.stack([np.tile(pixels(label, first, 32, 32).ravel(), 3) for label in labels])
        return pickle.dumps({"data": data, "labels": labels}, protocol=2)

    batches = {f"data_batch_{number}": batch(number) for number in range(1, 6)} | {
        "test_batch": batch(6)
    }
    return batches | {"batches.meta": pickle.dumps({"label_names": CIFAR}, protocol=2)}


@functools.cache
def cifar():
    return {
        "cifar-10-python.tar.gz": tar(
            {f"cifar-10-batches-py/{n}": content for n, content in cifar_batches().items()}
        )
    }


PUBLISHED = {
    "oxford_pets": pets,
    "flowers102": flowers,
    "eurosat": land,
    "fashion_mnist": fashion,
    "cifar10": cifar,
}


def md5(content):
    return hashlib.md5(content).hexdigest()


def point_torchvision_at(name, files, address, monkeypatch):
    """Let torchvision download a set's files from ``address``, and expect those in ``files``."""
    if name == "oxford_pets":
        resources = tuple((f"{address}/{file}", md5(content)) for file, content in files.items())
        monkeypatch.setattr(datasets.OxfordIIITPet, "_RESOURCES", resources)
    elif name == "flowers102":
        named = zip(("image", "label", "setid"), files.items(), strict=True)
        monkeypatch.setattr(datasets.Flowers102, "_download_url_prefix", f"{address}/")
        monkeypatch.setattr(
            datasets.Flowers102,
            "_file_dict",
            {key: (file, md5(content)) for key, (file, content) in named},
        )
    elif name == "eurosat":
        real = datasets.utils.download_and_extract_archive

        def from_here(url, download_root, md5):
            (file, content), *_ = files.items()
            assert url.endswith(f"/{file}")
            real(f"{address}/{file}", download_root, md5=hashlib.md5(content).hexdigest())

        monkeypatch.setattr(datasets.eurosat, "download_and_extract_archive", from_here)
    elif name == "fashion_mnist":
        monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [f"{address}/"])
        monkeypatch.setattr(
            datasets.FashionMNIST,
            "resources",
            [(file, md5(content)) for file, content in files.items()],
        )
    else:
        (file, content), *_ = files.items()
        sums = {batch: md5(inside) for batch, inside in cifar_batches().items()}
        monkeypatch.setattr(datasets.CIFAR10, "url", f"{address}/{file}")
        monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(content))
        monkeypatch.setattr(
            datasets.CIFAR10,
            "train_list",
            [[f"data_batch_{n}", sums[f"data_batch_{n}"]] for n in range(1, 6)],
        )
        monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
        monkeypatch.setattr(
            datasets.CIFAR10, "meta", datasets.CIFAR10.meta | {"md5": sums["batches.meta"]}
        )


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files``. If ``gate`` is set to an event, the second half of a file waits for it."""

    daemon_threads = True
    files: dict[str, bytes]
    gate: threading.Event | None = None

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name = urlsplit(self.path).path.lstrip("/")
        content = self.server.files.get(name)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        try:
            self.wfile.write(content[: len(content) // 2])
            if self.server.gate:
                self.wfile.flush()
                self.server.gate.wait(300)
            self.wfile.write(content[len(content) // 2 :])
        except ConnectionError:  # the other side asks for headers only, or has given up
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = Server(("127.0.0.1", 0), Handler)
    server.files = {}
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    yield server
    if server.gate:
        server.gate.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def published(server, monkeypatch):
    """Publish a small set of that name on the local server."""

    def publish(name):
        server.files = PUBLISHED[name]()
        point_torchvision_at(name, server.files, server.address, monkeypatch)
        return server

    return publish


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(public, "_EVERY", 0.02)


def assert_nothing_is_left(home):
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("fetch ")]
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive()
    assert os.listdir(home / "data") == []


def count_by_split(classes, **splits):
    return {f"{split}/{name}": count for split, count in splits.items() for name in classes}


BREEDS = list(PETS.values())
FLOWERS = [title.rstrip("?") for title in datasets.Flowers102.classes]
CLOTHES = ["T-shirt-top", *datasets.FashionMNIST.classes[1:]]
# Set -> classes in the order of their labels, images by folder, and a file with its content.
EXPECTED = {
    "oxford_pets": (BREEDS, count_by_split(BREEDS, train=4, test=2)),
    "flowers102": (FLOWERS, count_by_split(FLOWERS, train=2, val=1, test=1)),
    "eurosat": (LAND, dict.fromkeys(LAND, 5)),  # no splits of its own
    "fashion_mnist": (CLOTHES, count_by_split(CLOTHES, train=4, test=2)),
    "cifar10": (CIFAR, count_by_split(CIFAR, train=5, test=1)),
}
# Files that are copied, not encoded again.
COPIED = {
    "oxford_pets": ("train/American Bulldog/american_bulldog_2.jpg", jpeg(1, 2)),
    "eurosat": ("Forest/Forest_3.jpg", jpeg(1, 3)),
}
# Files that are written from arrays.
WRITTEN = {
    "fashion_mnist": ("train/Ankle boot/00009.png", (28, 28)),
    "cifar10": ("test/frog/00000.png", (32, 32)),
}


@pytest.mark.parametrize("name", PUBLIC_SETS)
def test_set_is_fetched_once_as_a_folder_to_train_on(name, published, home, monkeypatch, capfd):
    server = published(name)
    assert not is_fetched(name)
    steps, folder = drain(fetch_public(name))
    assert folder == public_set_folder(name) == home / "data" / name
    assert is_fetched(name)
    assert os.listdir(home / "data") == [name]  # no staging folder beside it

    classes, counts = EXPECTED[name]
    images = sum(counts.values())
    downloading, writing = steps[:-images], steps[-images:]
    assert {step.total for step in downloading} == {PUBLIC_SETS[name].download_bytes}
    assert downloading == sorted(downloading)
    # what is unpacked does not count
    assert downloading[-1].done == sum(len(content) for content in server.files.values())
    assert writing == [Step(done, images) for done in range(1, images + 1)]
    assert capfd.readouterr() == ("", "")  # torchvision's progress bar is silent

    files = list(folder.rglob("*.*"))
    assert Counter(file.parent.relative_to(folder).as_posix() for file in files) == counts
    for file in files:
        with Image.open(file) as image:
            assert abs(np.asarray(image).mean() - shade(classes.index(file.parent.name))) < 1
    if name in COPIED:
        path, content = COPIED[name]
        assert (folder / path).read_bytes() == content
    if name in WRITTEN:
        path, size = WRITTEN[name]
        assert Image.open(folder / path).size == size
    dataset = load_dataset(folder)
    assert len(dataset.table) == images
    assert dataset.given_splits == (name == "flowers102")  # which alone has all three

    monkeypatch.setattr(public, "_download", None)
    assert drain(fetch_public(name)) == ([], folder)


@pytest.mark.parametrize("name", PUBLIC_SETS)
def test_no_network_is_said_with_a_way_out(name, home, monkeypatch):
    point_torchvision_at(name, PUBLISHED[name](), "http://127.0.0.1:9", monkeypatch)
    with pytest.raises(DataError, match="Connection refused") as caught:
        drain(fetch_public(name))
    for words in (PUBLIC_SETS[name].title, "a folder or archive of your own", "the word digits"):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert_nothing_is_left(home)


@pytest.mark.parametrize("name", PUBLIC_SETS)
def test_what_was_not_published_is_refused(name, published, home):
    server = published(name)
    server.files = {file: content[:-1] + b"?" for file, content in server.files.items()}
    with pytest.raises(
        DataError, match=rf"{PUBLIC_SETS[name].title[:8]}.*not found or corrupted\)"
    ):
        drain(fetch_public(name))
    assert_nothing_is_left(home)


def test_a_file_the_server_does_not_have_is_said(published, home):
    published("cifar10").files = {}
    with pytest.raises(DataError, match="Not Found"):
        drain(fetch_public("cifar10"))
    assert_nothing_is_left(home)


def test_a_server_that_talks_nonsense_is_said(home, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"garbage\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        point_torchvision_at(
            "cifar10", cifar(), f"http://127.0.0.1:{server.getsockname()[1]}", monkeypatch
        )
        with pytest.raises(DataError, match="could not be downloaded"):
            drain(fetch_public("cifar10"))
    assert_nothing_is_left(home)


def test_a_server_that_falls_silent_is_given_up(published, home, monkeypatch):
    monkeypatch.setattr(public, "_PATIENCE", 0.2)
    server = published("cifar10")
    server.gate = threading.Event()
    with pytest.raises(DataError, match=r"nothing has arrived for 0\.2 seconds"):
        drain(fetch_public("cifar10"))
    server.gate.set()
    assert_nothing_is_left(home)


def test_a_slow_disk_is_not_taken_for_a_silent_server(published, monkeypatch):
    monkeypatch.setattr(public, "_PATIENCE", 2)
    published("eurosat")
    real = datasets.utils.extract_archive

    def slow(archive, target, *rest):
        for number in range(20):
            with open(os.path.join(target, f"{number}.part"), "wb") as file:
                file.write(b"x")
            time.sleep(0.15)  # all in all longer than a server may be silent
        real(archive, target, *rest)

    monkeypatch.setattr(datasets.utils, "extract_archive", slow)
    drain(fetch_public("eurosat"))
    assert is_fetched("eurosat")


def test_a_download_larger_than_known_is_never_more_than_all_of_it(published, monkeypatch):
    published("eurosat")
    monkeypatch.setitem(
        PUBLIC_SETS, "eurosat", dataclasses.replace(PUBLIC_SETS["eurosat"], download_bytes=100)
    )
    steps, _ = drain(fetch_public("eurosat"))
    assert Step(100, 100) in steps
    assert all(step.done <= step.total for step in steps)


def large(server):
    """The second half of the file is larger than all buffers on the way."""
    server.files = {file: content + bytes(64 << 20) for file, content in server.files.items()}
    return len(next(iter(server.files.values())))


def test_progress_is_what_has_arrived(published):
    server = published("cifar10")
    size = large(server)
    server.gate = threading.Event()
    fetching = fetch_public("cifar10")
    arrived = next(fetching)
    while arrived.done < size // 2 - (1 << 16):
        later = next(fetching)
        assert later >= arrived
        arrived = later
    assert arrived.done <= size // 2
    assert arrived.total == PUBLIC_SETS["cifar10"].download_bytes
    fetching.close()


def test_a_download_that_is_given_up_ends_and_leaves_nothing(published, home, monkeypatch):
    server = published("cifar10")
    large(server)
    server.gate = threading.Event()
    verified = []
    monkeypatch.setattr(
        datasets.utils, "check_integrity", lambda path, *_: verified.append(os.path.exists(path))
    )
    fetching = fetch_public("cifar10")
    while next(fetching).done == 0:
        pass
    (staging,) = (home / "data").iterdir()
    assert staging.name.startswith(".thaw-fetching-")
    fetching.close()
    server.gate.set()
    assert_nothing_is_left(home)
    # before the download only: it was broken off, not brought to its end
    assert verified == [False]


def test_what_is_unpacked_after_giving_up_goes_too(published, home, monkeypatch):
    published("eurosat")
    real, unpacking, closed = datasets.utils.extract_archive, threading.Event(), threading.Event()

    def slow(archive, target, *rest):
        with open(archive, "rb"):
            unpacking.set()
            closed.wait(300)
        os.makedirs(target)
        with open(os.path.join(target, "late"), "w"):
            pass
        real(archive, target, *rest)

    monkeypatch.setattr(datasets.utils, "extract_archive", slow)
    fetching = fetch_public("eurosat")
    while not unpacking.is_set():
        next(fetching)
    fetching.close()
    assert os.listdir(home / "data") == []  # at once, as far as possible
    closed.set()
    assert_nothing_is_left(home)


def test_giving_up_while_images_are_written_leaves_nothing(published, home):
    published("eurosat")
    fetching = fetch_public("eurosat")
    while next(fetching) != Step(7, 15):
        pass
    fetching.close()
    assert_nothing_is_left(home)


def test_a_disk_that_is_full_is_said(published, home, monkeypatch):
    published("fashion_mnist")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(
        DataError, match=r"Fashion-MNIST cannot be written to .*No space left on device"
    ):
        drain(fetch_public("fashion_mnist"))
    assert_nothing_is_left(home)


def test_a_home_that_cannot_be_written_is_said(home, monkeypatch):
    (home / "file").write_text("")
    monkeypatch.setenv("THAW_HOME", str(home / "file"))
    with pytest.raises(DataError, match="Set THAW_HOME"):
        drain(fetch_public("cifar10"))


def test_a_bug_stays_visible(home, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(public, "_download", broken)
    with pytest.raises(ZeroDivisionError):
        drain(fetch_public("cifar10"))
    assert_nothing_is_left(home)


def test_another_process_that_was_first_wins(published, home):
    published("eurosat")
    fetching = fetch_public("eurosat")
    next(fetching)
    (home / "data" / "eurosat" / "theirs").mkdir(parents=True)
    _, folder = drain(fetching)
    assert os.listdir(folder) == ["theirs"]
    assert os.listdir(home / "data") == ["eurosat"]


def test_what_is_said_of_the_sets_is_complete():
    assert list(PUBLIC_SETS) == ["oxford_pets", "flowers102", "eurosat", "fashion_mnist", "cifar10"]
    for name, known in PUBLIC_SETS.items():
        assert known.name == name
        assert known.source.startswith("https://")
        assert known.about.endswith(".")
        assert known.licence
        assert 0 < known.classes < known.images < known.download_bytes
    assert len(datasets.Flowers102.classes) == PUBLIC_SETS["flowers102"].classes
    assert len(datasets.FashionMNIST.classes) == PUBLIC_SETS["fashion_mnist"].classes
