import bz2
import gzip
import hashlib
import io
import lzma
import os
import random
import stat
import struct
import tarfile
import tempfile
import tracemalloc
import unicodedata
import zipfile
import zlib
from collections import namedtuple
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_core.data.archives import Limits, import_archive, import_files, is_archive
from finetune_core.errors import DataError
from finetune_core.work import Step, finish
from tests.deadline import in_time

quick = settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow],
)

PIXELS = random.Random(0).randbytes(3000)  # nobody looks at them here
SMALL = Limits(
    total_bytes=200_000, entries=20, ratio=50, ratio_from_bytes=100_000, file_bytes=50_000, depth=3
)
KINDS = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Three folders down, so that a name that leads out of it still ends up where the tests look."""
    folder = tmp_path / "far" / "down" / "home"
    monkeypatch.setenv("THAW_HOME", str(folder))
    return folder


def everything(folder):
    """All that lies below a folder: path -> what it is; folders without their times, which a staging folder changes."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        status = path.lstat()
        is_folder = stat.S_ISDIR(status.st_mode)
        found[path.relative_to(folder).as_posix()] = (
            "folder" if is_folder else (status.st_mode, status.st_size, status.st_mtime_ns)
        )
    return found


def files_in(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


def assert_refused(start, tmp_path, why):
    """Runs an import that has to be refused, in one line, with nothing left behind and nothing touched."""
    (tmp_path / "far" / "down" / "home" / "data").mkdir(parents=True)
    (tmp_path / "bystander.jpg").write_bytes(b"untouched")
    before = everything(tmp_path)
    with pytest.raises(DataError, match=why) as refused:
        finish(start())
    message = str(refused.value)
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    assert len(message) < 500
    assert "was not imported: " in message
    assert message.endswith(".")
    assert everything(tmp_path) == before


# --- ZIP, by hand ----------------------------------------------------------------------------------------------------------


def deflated(content):
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(content) + packer.flush()


def entry(
    name,
    content=PIXELS,
    *,
    method=8,
    flags=0x800,
    mode=0,
    extra=b"",
    packed=None,
    says=None,
    local=None,
    offset=None,
):
    """One entry of a ZIP; ``says`` are lies of the directory, ``local`` those of the entry's own header."""
    raw = name if isinstance(name, bytes) else name.encode("utf-8", "surrogatepass")
    data = (
        packed
        if packed is not None
        else {0: bytes, 8: deflated, 12: bz2.compress}.get(method, bytes)(content)
    )
    true = {
        "name": raw,
        "flags": flags,
        "method": method,
        "crc": zlib.crc32(content),
        "packed": len(data),
        "size": len(content),
    }
    return {
        **true,
        **(says or {}),
        "data": data,
        "local": {**true, **(local or {})},
        "mode": mode,
        "extra": extra,
        "offset": offset,
    }


def zipped(
    *entries, count=None, comment=b"", comment_length=None, shift=0, span=None, disk=0, wide=None
):
    body, directory = io.BytesIO(), io.BytesIO()
    for one in entries:
        own, offset = one["local"], body.tell() if one["offset"] is None else one["offset"]
        numbers = (
            own["flags"],
            own["method"],
            0,
            33,
            own["crc"],
            own["packed"],
            own["size"],
            len(own["name"]),
            0,
        )
        body.write(struct.pack("<4s5H3L2H", b"PK\3\4", 20, *numbers) + own["name"] + one["data"])
        numbers = one["flags"], one["method"], 0, 33, one["crc"], one["packed"], one["size"]
        lengths = len(one["name"]), len(one["extra"]), 0, 0, 0, one["mode"] << 16, offset
        directory.write(
            struct.pack("<4s6H3L5H2L", b"PK\1\2", 0x314, 20, *numbers, *lengths)
            + one["name"]
            + one["extra"]
        )
    start, directory = body.tell(), directory.getvalue()
    count = len(entries) if count is None else count
    span = len(directory) if span is None else span
    end = b""
    if wide is not None:
        end += struct.pack(
            "<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, wide, wide, span, start + shift
        )
        end += struct.pack("<4sLQL", b"PK\6\7", 0, start + len(directory), 1)
    length = len(comment) if comment_length is None else comment_length
    end += (
        struct.pack("<4s4H2LH", b"PK\5\6", disk, disk, count, count, span, start + shift, length)
        + comment
    )
    return body.getvalue() + directory + end


def ordinary_zip(files=None, **options):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, content in (files or {"cat/1.jpg": PIXELS, "dog/2.png": PIXELS[:100]}).items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_the_hand_made_zip_is_what_the_standard_library_reads():
    archive = zipfile.ZipFile(
        io.BytesIO(zipped(entry("cat/1.jpg"), entry("é.png", b"x", method=0), wide=2))
    )
    assert archive.testzip() is None
    assert archive.read("cat/1.jpg") == PIXELS
    assert archive.namelist() == ["cat/1.jpg", "é.png"]


# --- TAR, by hand ----------------------------------------------------------------------------------------------------------

END = bytes(1024)


def block(name, size=0, kind=b"0", *, link=b"", prefix=b"", magic=b"ustar\x0000", size_field=None):
    raw = name if isinstance(name, bytes) else name.encode("utf-8", "surrogatepass")
    size_field = b"%011o\0" % size if size_field is None else size_field
    fields = (
        raw,
        b"0000644\0",
        b"0000000\0",
        b"0000000\0",
        size_field,
        b"00000000000\0",
        b" " * 8,
        kind,
        link,
        magic,
    )
    header = bytearray(struct.pack("100s8s8s8s12s12s8s1s100s8s80x155s12x", *fields, prefix))
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def padded(content):
    return content + bytes(-len(content) % 512)


def member(name, content=PIXELS, kind=b"0", **options):
    return block(name, len(content), kind, **options) + padded(content)


def record(keyword, value):
    body = b" " + keyword.encode() + b"=" + value + b"\n"
    length = next(
        length
        for length in range(len(body), len(body) + 10)
        if length == len(body) + len(str(length))
    )
    return str(length).encode() + body


def pax(kind=b"x", **records):
    return member(
        "PaxHeader",
        b"".join(record(key.replace("_", "."), value) for key, value in records.items()),
        kind,
    )


def long_name(name):
    return member("././@LongLink", name + b"\0", b"L")


def ordinary_tar(files=None, form=tarfile.PAX_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in (files or {"cat/1.jpg": PIXELS, "dog/2.png": PIXELS[:100]}).items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_the_hand_made_tar_is_what_the_standard_library_reads():
    content = (
        member("cat/1.jpg")
        + long_name(b"a/" * 60 + b"2.jpg")
        + member("short")
        + pax(path="é.jpg".encode())
        + member("s")
    )
    with tarfile.open(fileobj=io.BytesIO(content + END)) as archive:
        assert archive.getnames() == ["cat/1.jpg", "a/" * 60 + "2.jpg", "é.jpg"]
        assert archive.extractfile("é.jpg").read() == PIXELS


# --- What is refused -------------------------------------------------------------------------------------------------------

# Names that no archive may hold, and why.
NAMES = {
    "absolute": ("/evil.jpg", "absolute"),
    "absolute, twice": ("//evil.jpg", "absolute"),
    "dots": ("../evil.jpg", "leads out"),
    "dots, many": ("../" * 12 + "tmp/evil.jpg", "(leads out|more than 3)"),
    "dots inside": ("cat/../../evil.jpg", "leads out"),
    "dots that come back": ("cat/../evil.jpg", "leads out"),
    "dots at the end": ("cat/..", "leads out"),
    "dots and a space": ("cat/.. /evil.jpg", "leads out"),
    "dots for Windows": ("..\\evil.jpg", "leads out"),
    "dots inside for Windows": ("cat\\..\\..\\evil.jpg", "leads out"),
    "both separators": ("cat/..\\../evil.jpg", "leads out"),
    "absolute for Windows": ("\\evil.jpg", "absolute"),
    "UNC": ("\\\\server\\share\\evil.jpg", "absolute"),
    "UNC with slashes": ("//server/share/evil.jpg", "absolute"),
    "device path": ("\\\\.\\C:\\evil.jpg", "absolute"),
    "drive": ("C:/evil.jpg", "names a drive"),
    "drive and backslash": ("c:\\evil.jpg", "names a drive"),
    "drive without a slash": ("C:evil.jpg", "names a drive"),
    "drive inside": ("cat/C:/evil.jpg", "names a drive"),
    "newline": ("cat/a\nb.jpg", "control characters"),
    "escape": ("cat/\x1b[2J.jpg", "control characters"),
    "delete": ("cat/a\x7fb.jpg", "control characters"),
    "line separator": ("cat/a\u2028b.jpg", "control characters"),
    "lone surrogate": ("cat/\ud800.jpg", "not valid Unicode"),
    "long": ("a" * 252 + ".jpg", "255 bytes"),
    "long in bytes": ("é" * 126 + ".jpg", "255 bytes"),
    "very long": ("a" * 50_000 + ".jpg", "255 bytes"),
    "deep": ("a/b/c/d/1.jpg", "more than 3 folders"),
    "very deep": ("a/" * 20_000 + "1.jpg", "more than 3 folders"),
    "not an image": ("../notes.txt", "leads out"),
    "noise": ("../.DS_Store", "leads out"),
    "folder": ("../evil/", "leads out"),
}

# Names that cannot lie side by side.
PAIRS = {
    "twice": ("cat/1.jpg", "cat/1.jpg", "is there twice"),
    "twice, at the top": ("1.jpg", "1.jpg", "is there twice"),
    "twice, written otherwise": ("cat/1.jpg", "./cat//1.jpg", "is there twice"),
    "twice, the other separator": ("cat/1.jpg", "cat\\1.jpg", "is there twice"),
    "twice, no image": ("notes.txt", "notes.txt", "is there twice"),
    "case": ("cat/a.jpg", "cat/A.JPG", "only in case"),
    "case of a folder": ("cat/1.jpg", "Cat/2.jpg", "only in case"),
    "sharp s": ("straße.jpg", "STRASSE.jpg", "only in case"),
    "normal form": ("é.jpg", unicodedata.normalize("NFD", "é.jpg"), "accents"),
    "normal form of a folder": (
        "Käse/1.jpg",
        unicodedata.normalize("NFD", "Käse") + "/2.jpg",
        "accents",
    ),
    "normal form and case": ("É.jpg", unicodedata.normalize("NFD", "é.jpg"), "accents"),
    "file, then folder": ("cat.jpg", "cat.jpg/1.jpg", "both a file and a folder"),
    "folder, then file": ("cat.jpg/1.jpg", "cat.jpg", "both a file and a folder"),
    "file, then an empty folder": ("cat.jpg", "cat.jpg/", "both a file and a folder"),
    "an empty folder, then file": ("cat.jpg/", "cat.jpg", "both a file and a folder"),
    "file, then folder of another case": ("cat.jpg", "CAT.jpg/1.jpg", "only in case"),
}


def zip_named(*names):
    return zipped(*(entry(name, b"" if name.endswith("/") else PIXELS) for name in names))


def tar_named(*names):
    """Once in the header where they fit, else in a GNU header."""
    parts = []
    for name in names:
        raw = name.encode("utf-8", "surrogatepass")
        parts += [member(raw)] if len(raw) <= 100 else [long_name(raw), member("short")]
    return b"".join(parts) + END


def pax_named(*names):
    return (
        b"".join(
            pax(path=name.encode("utf-8", "surrogatepass")) + member("short") for name in names
        )
        + END
    )


WRITERS = {"zip": zip_named, "tar": tar_named, "pax": pax_named}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize(("name", "why"), NAMES.values(), ids=NAMES)
def test_an_archive_with_a_bad_name_is_refused(tmp_path, write, name, why):
    archive = write("cat/good.jpg", name)
    assert_refused(lambda: import_archive(io.BytesIO(archive), "a.zip", SMALL), tmp_path, why)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize(("one", "other", "why"), PAIRS.values(), ids=PAIRS)
def test_an_archive_with_names_that_collide_is_refused(tmp_path, write, one, other, why):
    archive = write("good.jpg", one, other)
    assert_refused(lambda: import_archive(io.BytesIO(archive), "a.zip", SMALL), tmp_path, why)


@pytest.mark.parametrize(("name", "why"), NAMES.values(), ids=NAMES)
def test_a_folder_from_a_browser_with_a_bad_name_is_refused(tmp_path, name, why):
    files = [("cat/good.jpg", io.BytesIO(PIXELS)), (name, io.BytesIO(PIXELS))]
    assert_refused(lambda: import_files(files, "a", 2, SMALL), tmp_path, why)


@pytest.mark.parametrize(("one", "other", "why"), PAIRS.values(), ids=PAIRS)
def test_a_folder_from_a_browser_with_names_that_collide_is_refused(tmp_path, one, other, why):
    files = [(name, io.BytesIO(PIXELS)) for name in ("good.jpg", one, other)]
    assert_refused(lambda: import_files(files, "a", 3, SMALL), tmp_path, why)


GOOD_ENTRY, GOOD_MEMBER = entry("cat/good.jpg"), member("cat/good.jpg")
ZEROS = bytes(300_000)  # more than SMALL allows, in one file and in all
LINK = b"../../outside"


def nested_overlap():
    """The second entry lies inside the first one's content."""
    inner = zipped(entry("b.jpg", method=0))
    inner = inner[: inner.index(b"PK\1\2")]
    return zipped(
        entry("a.jpg", inner, method=0),
        {**entry("b.jpg", method=0, offset=30 + len("a.jpg")), "local": {**entry("c")["local"]}},
    )


def shared_content(count=5):
    """All entries of the directory name one and the same content: the quoted bomb's little sister."""
    return zipped(
        entry("a.jpg"),
        *({**entry("a.jpg", offset=0), "name": b"%d.jpg" % number} for number in range(count)),
    )


def sparse_old():
    header = bytearray(block("sparse.jpg", 512, b"S", magic=b"ustar  \0"))
    header[386:410] = b"%011o\0%011o\0" % (0, 512)
    header[483:495] = b"%011o\0" % 4096
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(512)


ZIPS = {
    # Kinds.
    "symbolic link": (zipped(entry("l.jpg", LINK, mode=stat.S_IFLNK | 0o777)), "symbolic link"),
    "link, then a file through it": (
        zipped(entry("out", LINK, method=0, mode=stat.S_IFLNK | 0o777), entry("out/evil.jpg")),
        "(both a file and a folder|symbolic link)",
    ),
    "link that is no image": (
        zipped(GOOD_ENTRY, entry("readme", LINK, mode=stat.S_IFLNK | 0o777)),
        "symbolic link",
    ),
    "named pipe": (
        zipped(GOOD_ENTRY, entry("p.jpg", b"", mode=stat.S_IFIFO | 0o644)),
        "named pipe",
    ),
    "character device": (
        zipped(GOOD_ENTRY, entry("d.jpg", b"", mode=stat.S_IFCHR | 0o644)),
        "device",
    ),
    "block device": (zipped(GOOD_ENTRY, entry("d.jpg", b"", mode=stat.S_IFBLK | 0o644)), "device"),
    "socket": (zipped(GOOD_ENTRY, entry("s.jpg", b"", mode=stat.S_IFSOCK | 0o644)), "socket"),
    "unknown kind": (zipped(GOOD_ENTRY, entry("s.jpg", b"", mode=0o050644)), "unknown kind"),
    # Names that only a ZIP can have.
    "NUL": (zipped(GOOD_ENTRY, entry(b"cat/a.jpg\0../../x")), "control characters"),
    "NUL before a suffix": (zipped(GOOD_ENTRY, entry(b"cat/a.txt\0.jpg")), "control characters"),
    "no name": (zipped(GOOD_ENTRY, entry(b"")), "is no name"),
    "not the UTF-8 that it claims": (
        zipped(GOOD_ENTRY, entry(b"caf\xe9.jpg", flags=0x800)),
        "not valid Unicode",
    ),
    "control character in DOS letters": (
        zipped(GOOD_ENTRY, entry(b"\x01\xe9.jpg", flags=0)),
        "control characters",
    ),
    "another name inside": (
        zipped(entry("a.jpg", local={"name": b"../a.jp"})),
        "not what its directory says",
    ),
    # Packing.
    "encrypted": (zipped(GOOD_ENTRY, entry("a.jpg", flags=0x801)), "encrypted"),
    "strongly encrypted": (zipped(GOOD_ENTRY, entry("a.jpg", flags=0x841)), "encrypted"),
    "masked headers": (zipped(GOOD_ENTRY, entry("a.jpg", flags=0x2800)), "encrypted"),
    "encrypted, says the entry only": (
        zipped(entry("a.jpg", local={"flags": 1})),
        "not what its directory says",
    ),
    "encrypted text": (zipped(GOOD_ENTRY, entry("a.txt", flags=0x801)), "encrypted"),
    "bzip2": (zipped(GOOD_ENTRY, entry("a.jpg", method=12)), "method 12"),
    "bzip2 bomb that says it is none": (
        zipped(entry("a.jpg", ZEROS, method=12, says={"size": 1000})),
        "method 12",
    ),
    "Deflate64": (zipped(GOOD_ENTRY, entry("a.jpg", method=9)), "method 9"),
    "LZMA": (zipped(GOOD_ENTRY, entry("a.jpg", method=14)), "method 14"),
    "AES": (zipped(GOOD_ENTRY, entry("a.jpg", method=99)), "method 99"),
    "unknown method": (zipped(GOOD_ENTRY, entry("a.jpg", method=1234)), "method 1234"),
    "another method inside": (
        zipped(entry("a.jpg", local={"method": 0})),
        "not what its directory says",
    ),
    # Sizes.
    "size too small": (zipped(entry("a.jpg", says={"size": 10})), "Bad CRC"),
    "size too small in both": (
        zipped(entry("a.jpg", says={"size": 10}, local={"size": 10})),
        "Bad CRC",
    ),
    "size nought": (zipped(entry("a.jpg", says={"size": 0})), "Bad CRC"),
    "size too large": (zipped(entry("a.jpg", says={"size": 5000})), "smaller than it says"),
    "size too large, stored": (
        zipped(entry("a.jpg", method=0, says={"size": 5000})),
        "smaller than it says",
    ),
    "size far too large": (zipped(entry("a.jpg", says={"size": 0xFFFFFFFE})), "more than 200.0 kB"),
    "size in the extra field": (
        zipped(entry("a.jpg", says={"size": 0xFFFFFFFF}, extra=struct.pack("<2HQ", 1, 8, 1 << 62))),
        "more than 200.0 kB",
    ),
    "extra field too short": (
        zipped(
            entry(
                "a.jpg",
                says={"size": 0xFFFFFFFF, "packed": 0xFFFFFFFF},
                extra=struct.pack("<2HQ", 1, 8, 3000),
            )
        ),
        "Corrupt zip64",
    ),
    "extra field longer than itself": (
        zipped(entry("a.jpg", says={"size": 0xFFFFFFFF}, extra=struct.pack("<2HQ", 1, 800, 3000))),
        "damaged",
    ),
    "packed too small": (zipped(entry("a.jpg", says={"packed": 100})), "damaged"),
    "packed too large": (zipped(entry("a.jpg", says={"packed": 100_000})), "overlap"),
    "stored, two sizes": (zipped(entry("a.jpg", method=0, says={"size": 2000})), "Bad CRC"),
    "wrong checksum": (zipped(entry("a.jpg", says={"crc": 1})), "Bad CRC"),
    "garbage for Deflate": (zipped(entry("a.jpg", packed=b"\xff" * 500)), "damaged"),
    "bomb": (zipped(entry("a.jpg", ZEROS)), "larger than 50.0 kB|more than 50 times|more than 200"),
    "bomb that says it is none": (
        zipped(entry("a.jpg", ZEROS, says={"size": 1000}, local={"size": 1000})),
        "Bad CRC",
    ),
    "bomb of many": (
        zipped(*(entry(f"{number}.jpg", bytes(40_000)) for number in range(4))),
        "more than 50 times its size",
    ),
    "one large file": (zipped(entry("a.jpg", PIXELS * 20)), "“a.jpg” is larger than 50.0 kB"),
    "large in all": (
        zipped(*(entry(f"{number}.jpg", PIXELS * 14) for number in range(5))),
        "more than 200.0 kB",
    ),
    # Structure.
    "the same content twice": (shared_content(), "overlap"),
    "an entry inside another": (nested_overlap(), "overlap|not what its directory says"),
    "an entry in the directory": (
        zipped(GOOD_ENTRY, entry("a.jpg", offset=3100)),
        "overlap|not what its directory says",
    ),
    "an entry past the end": (zipped(GOOD_ENTRY, entry("a.jpg", offset=0x7FFFFFFF)), "overlap"),
    "an entry far past the end": (
        zipped(
            GOOD_ENTRY,
            entry("a.jpg", offset=0xFFFFFFFF, extra=struct.pack("<2HQ", 1, 8, (1 << 64) - 1)),
        ),
        "overlap",
    ),
    "no header at its place": (
        zipped(entry("a.jpg"), entry("b.jpg", offset=2000)),
        "overlap|not what its directory says",
    ),
    "too many": (zipped(*(entry(f"{number}.jpg") for number in range(21))), "more than 20 files"),
    "too many, hidden": (
        zipped(*(entry(f"{number}.jpg") for number in range(21)), count=1),
        "more than 20 files",
    ),
    "too many folders": (
        zipped(*(entry(f"{number}/a/b/c.jpg") for number in range(6))),
        "more than 20 files",
    ),
    "one folder too many times": (
        zipped(GOOD_ENTRY, *[entry("cat/", b"")] * 20),
        "more than 20 files",
    ),
    "claims too many": (zipped(GOOD_ENTRY, count=60_000), "more than 20 files"),
    "claims far too many": (zipped(GOOD_ENTRY, wide=1 << 60), "more than 20 files"),
    "claims more than it has": (zipped(GOOD_ENTRY, count=3), "not complete"),
    "claims fewer than it has": (zipped(GOOD_ENTRY, entry("a.jpg"), count=1), "not complete"),
    "directory too long": (zipped(GOOD_ENTRY, span=1 << 31), "not where it says"),
    "directory too short": (zipped(GOOD_ENTRY, entry("a.jpg"), span=58), "damaged"),
    "directory elsewhere": (zipped(GOOD_ENTRY, shift=-5), "not where it says"),
    "directory past the end": (zipped(GOOD_ENTRY, shift=1 << 30), "not where it says"),
    "directory garbled": (
        zipped(GOOD_ENTRY).replace(b"PK\1\2", b"PK\1\3"),
        "Bad magic number for central directory",
    ),
    "no directory": (zipped(GOOD_ENTRY)[:-22], "directory is missing"),
    "comment cut": (
        zipped(GOOD_ENTRY, comment=b"hello", comment_length=50),
        "directory is missing",
    ),
    "something after the end": (zipped(GOOD_ENTRY) + b"more", "directory is missing"),
    "something in between": (
        zipped(GOOD_ENTRY).replace(b"PK\5\6", b"xPK\5\6"),
        "not where it says",
    ),
    "one part of several": (zipped(GOOD_ENTRY, disk=1), "part of several"),
    "one part of several, with its mark": (
        b"PK\7\x08" + zipped(GOOD_ENTRY, disk=1, shift=4),
        "part of several",
    ),
    "locator without a record": (
        zipped(GOOD_ENTRY).replace(
            b"PK\5\6", bytes(56) + struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1) + b"PK\5\6"
        ),
        "directory is missing",
    ),
    "locator and hardly more": (
        b"PK\3\4" + struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1) + zipped(),
        "damaged",
    ),
    # Nothing in it.
    "empty": (zipped(), "holds no image"),
    "no image": (
        zipped(entry("readme.txt"), entry("more.zip", zipped(GOOD_ENTRY))),
        "holds no image",
    ),
    "only noise": (
        zipped(entry("__MACOSX/cat/1.jpg"), entry(".hidden/1.jpg"), entry("._1.jpg")),
        "holds no image",
    ),
    "only a folder": (zipped(entry("cat.jpg/", b"")), "holds no image"),
}


@pytest.mark.parametrize(("archive", "why"), ZIPS.values(), ids=ZIPS)
def test_a_hostile_zip_is_refused(tmp_path, archive, why):
    assert_refused(
        lambda: import_archive(io.BytesIO(archive), "photos.zip", SMALL),
        tmp_path,
        rf"^photos\.zip was.*({why})",
    )


BIG_NUMBER = b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7
NEGATIVE = b"\xff" * 12

TARS = {
    # Kinds.
    "symbolic link": (block("l.jpg", kind=b"2", link=LINK), "symbolic link"),
    "link, then a file through it": (
        block("out", kind=b"2", link=LINK) + member("out/evil.jpg"),
        "symbolic link",
    ),
    "file, link over it, file through it": (
        member("out/1.jpg") + block("out", kind=b"2", link=LINK) + member("out/evil.jpg"),
        "both a file and a folder",
    ),
    "link that is no image": (GOOD_MEMBER + block("readme", kind=b"2", link=LINK), "symbolic link"),
    "link among noise": (GOOD_MEMBER + block(".git/HEAD", kind=b"2", link=LINK), "symbolic link"),
    "link with a long target": (
        member("././@LongLink", LINK * 50, b"K") + block("l.jpg", kind=b"2"),
        "symbolic link",
    ),
    "link by an extended header": (
        pax(linkpath=b"/etc/passwd") + block("l.jpg", kind=b"2"),
        "symbolic link",
    ),
    "hard link": (block("h.jpg", kind=b"1", link=b"/etc/passwd"), "hard link"),
    "hard link to a good file": (
        GOOD_MEMBER + block("h.jpg", kind=b"1", link=b"cat/good.jpg"),
        "hard link",
    ),
    "character device": (GOOD_MEMBER + block("d.jpg", kind=b"3"), "device"),
    "block device": (GOOD_MEMBER + block("d.jpg", kind=b"4"), "device"),
    "named pipe": (GOOD_MEMBER + block("p.jpg", kind=b"6"), "named pipe"),
    "sparse, old": (GOOD_MEMBER + sparse_old(), "sparse"),
    "sparse, 0.0": (
        GOOD_MEMBER + pax(GNU_sparse_size=b"99999999", GNU_sparse_numblocks=b"1") + member("s.jpg"),
        "sparse",
    ),
    "sparse, 0.1": (
        GOOD_MEMBER + pax(GNU_sparse_map=b"0,1,99999999,1") + member("s.jpg"),
        "sparse",
    ),
    "sparse, 1.0": (
        GOOD_MEMBER + pax(GNU_sparse_major=b"1", GNU_sparse_minor=b"0") + member("s.jpg"),
        "sparse",
    ),
    "sparse, for all": (pax(b"g", GNU_sparse_map=b"0,1") + GOOD_MEMBER, "sparse"),
    "volume label": (block("label", kind=b"V") + GOOD_MEMBER, "unknown kind"),
    "continued elsewhere": (member("c.jpg", kind=b"M") + GOOD_MEMBER, "unknown kind"),
    "unknown kind": (GOOD_MEMBER + member("u.jpg", kind=b"Z"), "unknown kind"),
    # Names that only a TAR can have.
    "no name": (GOOD_MEMBER + member(b""), "is no name"),
    "no UTF-8": (GOOD_MEMBER + member(b"caf\xe9.jpg"), "not valid Unicode"),
    "no UTF-8 in an extended header": (
        GOOD_MEMBER + pax(path=b"caf\xe9.jpg") + member("s"),
        "not valid Unicode",
    ),
    "binary in an extended header": (
        GOOD_MEMBER + pax(hdrcharset=b"BINARY", path=b"caf\xe9.jpg") + member("s"),
        "not valid Unicode",
    ),
    "NUL in a long name": (
        GOOD_MEMBER + long_name(b"a.jpg\0../../x.jpg") + member("s"),
        "control characters",
    ),
    "NUL in an extended header": (
        GOOD_MEMBER + pax(path=b"a.jpg\0.txt") + member("s"),
        "control characters",
    ),
    "dots in the prefix": (GOOD_MEMBER + member("evil.jpg", prefix=b".."), "leads out"),
    "absolute by its prefix": (GOOD_MEMBER + member("evil.jpg", prefix=b"/tmp"), "absolute"),
    "one name for all": (pax(b"g", path=b"../evil.jpg") + GOOD_MEMBER, "leads out"),
    "one name for two": (pax(b"g", path=b"a.jpg") + GOOD_MEMBER + GOOD_MEMBER, "is there twice"),
    "folder that leads out": (GOOD_MEMBER + block("../evil", kind=b"5"), "leads out"),
    # Sizes.
    "size past the end": (GOOD_MEMBER + block("a.jpg", 100_000), "too early"),
    "size far past the end": (GOOD_MEMBER + block("a.jpg", size_field=BIG_NUMBER), "too early"),
    "negative size": (GOOD_MEMBER + block("a.jpg", size_field=NEGATIVE), "negative"),
    "size without digits": (GOOD_MEMBER + block("a.jpg", size_field=b"zzzzzzzzzzz\0"), "damaged"),
    "size in an extended header": (
        GOOD_MEMBER + pax(size=b"99999999999999999999") + member("a.jpg"),
        "too early",
    ),
    "negative size in an extended header": (
        GOOD_MEMBER + pax(size=b"-512") + member("a.jpg"),
        "garbled",
    ),
    "size in words": (GOOD_MEMBER + pax(size=b"large") + member("a.jpg"), "garbled"),
    "size of ten thousand digits": (
        GOOD_MEMBER + pax(size=b"9" * 10_000) + member("a.jpg"),
        "damaged",
    ),
    "one large file": (member("a.jpg", PIXELS * 20), "“a.jpg” is larger than 50.0 kB"),
    "large in all": (
        b"".join(member(f"{number}.jpg", PIXELS * 14) for number in range(5)),
        "more than 200.0 kB",
    ),
    "large, nothing of it wanted": (GOOD_MEMBER + member("video.mp4", ZEROS), "more than 200.0 kB"),
    # Headers.
    "huge extended header": (
        GOOD_MEMBER + block("PaxHeader", 3_000_000_000, b"x"),
        "header of 3.0 GB",
    ),
    "huge header for all": (
        GOOD_MEMBER + block("PaxHeader", 20_000_000, b"g"),
        "header of 20.0 MB",
    ),
    "huge Solaris header": (
        GOOD_MEMBER + block("PaxHeader", 20_000_000, b"X"),
        "header of 20.0 MB",
    ),
    "huge long name": (GOOD_MEMBER + block("././@LongLink", 20_000_000, b"L"), "header of 20.0 MB"),
    "huge long link": (
        GOOD_MEMBER + block("././@LongLink", size_field=BIG_NUMBER, kind=b"K"),
        "header of",
    ),
    "negative extended header": (
        GOOD_MEMBER + block("PaxHeader", size_field=NEGATIVE, kind=b"x"),
        "negative",
    ),
    "nothing but extended headers": (pax(comment=b"x") * 300, "more than 200.0 kB"),
    "extended header, garbled": (
        GOOD_MEMBER + member("P", b"hello world\n", b"x") + member("a.jpg"),
        "garbled",
    ),
    "extended header, length nought": (
        GOOD_MEMBER + member("P", b"0 a=b\n", b"x") + member("a.jpg"),
        "garbled",
    ),
    "extended header, negative length": (
        GOOD_MEMBER + member("P", b"-1 path=b\n\n", b"x") + member("a.jpg"),
        "garbled",
    ),
    "extended header, length too long": (
        GOOD_MEMBER + member("P", b"99 path=b\n", b"x") + member("a.jpg"),
        "garbled",
    ),
    "extended header, length too short": (
        GOOD_MEMBER + member("P", b"5 path=b\n", b"x") + member("a.jpg"),
        "garbled",
    ),
    "extended header, digits only": (
        GOOD_MEMBER + member("P", b"1" * 100_000, b"x") + member("a.jpg"),
        "garbled",
    ),
    "wrong checksum": (
        GOOD_MEMBER + member("a.jpg").replace(b"a.jpg", b"b.jpg", 1),
        "bad checksum",
    ),
    "wrong checksum at once": (member("a.jpg").replace(b"a.jpg", b"b.jpg", 1), "bad checksum"),
    "too many": (
        b"".join(member(f"{number}.jpg", b"x") for number in range(21)),
        "more than 20 files",
    ),
    "one folder too many times": (GOOD_MEMBER + block("cat", kind=b"5") * 20, "more than 20 files"),
    "too many folders": (
        b"".join(member(f"{number}/a/b/c.jpg", b"x") for number in range(6)),
        "more than 20 files",
    ),
    "a second archive after the end": (
        GOOD_MEMBER + END + member("dog/1.jpg"),
        "follows after its end",
    ),
    # Nothing in it.
    "no image": (member("readme.txt") + member("more.tar", GOOD_MEMBER + END), "holds no image"),
    "empty": (b"", "holds no image"),
    "only a folder": (block("cat.jpg/", kind=b"5"), "holds no image"),
    "only noise": (member("__MACOSX/1.jpg") + member("a/.b/1.jpg"), "holds no image"),
}


@pytest.mark.parametrize(("content", "why"), TARS.values(), ids=TARS)
@pytest.mark.parametrize("kind", ["", ".gz"])
def test_a_hostile_tar_is_refused(tmp_path, content, why, kind):
    archive = KINDS[kind](content + END)
    limits = Limits(**{**vars(SMALL), "ratio": 10_000})  # the bombs have their own test
    assert_refused(
        lambda: import_archive(io.BytesIO(archive), f"a.tar{kind}", limits), tmp_path, why
    )


@pytest.mark.parametrize("kind", [".gz", ".bz2", ".xz"])
@pytest.mark.parametrize("name", ["a.jpg", "notes.txt", "nothing"])
def test_a_bomb_is_refused_after_a_bounded_part_of_it(tmp_path, kind, name):
    """Whether the zeros are an image, are skipped, or follow the archive's end."""
    zeros = bytes(60_000_000)
    content = GOOD_MEMBER + (END + zeros if name == "nothing" else member(name, zeros) + END)
    archive = KINDS[kind](content)
    tracemalloc.start()
    try:
        assert_refused(
            lambda: import_archive(io.BytesIO(archive), f"a.tar{kind}"),
            tmp_path,
            "more than 200 times its size",
        )
        assert tracemalloc.get_traced_memory()[1] < 25_000_000  # xz remembers 8 MB by itself
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("claim", [60_000_000, 45_000_000])
def test_a_zip_bomb_is_refused_after_a_bounded_part_of_it(tmp_path, claim):
    """Also one that claims a size that would pass."""
    archive = zipped(entry("a.jpg", bytes(60_000_000), says={"size": claim}))
    tracemalloc.start()
    try:
        assert_refused(
            lambda: import_archive(io.BytesIO(archive), "a.zip"),
            tmp_path,
            "more than 200 times its size|Bad CRC",
        )
        assert tracemalloc.get_traced_memory()[1] < 12_000_000
    finally:
        tracemalloc.stop()


def test_a_zip_directory_beyond_reason_is_refused_before_it_is_read(tmp_path):
    span = 200 << 20
    archive = tmp_path / "a.zip"
    with archive.open("wb") as file:
        file.write(b"PK\3\4")
        file.seek(span)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, span, 0, 0))
    tracemalloc.start()
    try:
        assert_refused(
            lambda: import_archive(archive, "a.zip"), tmp_path, "directory takes 209.7 MB"
        )
        assert tracemalloc.get_traced_memory()[1] < 12_000_000
    finally:
        tracemalloc.stop()


def test_an_xz_dictionary_beyond_reason_is_refused(tmp_path):
    archive = bytearray(lzma.compress(ordinary_tar()))
    archive[16] = 40  # 4 GiB
    archive[20:24] = struct.pack("<L", zlib.crc32(archive[12:20]))
    assert_refused(lambda: import_archive(io.BytesIO(archive), "a.tar.xz"), tmp_path, "[Mm]emory")


@pytest.mark.parametrize("layers", [2, 3000])
def test_a_chain_of_headers_is_followed_without_recursion(layers):
    chain = long_name(b"../x.jpg") * (layers - 1) + long_name(b"cat/1.jpg") + member("short")
    folder = finish(import_archive(io.BytesIO(chain + END), "a.tar"))
    assert files_in(folder) == {"cat/1.jpg": PIXELS}


def test_extended_headers_are_read_in_linear_time(tmp_path):
    # takes tarfile's regular expression half an hour
    header = member("P", b"1" * 1_000_000 + b" ", b"x")
    with in_time("a long extended header"):
        assert_refused(
            lambda: import_archive(io.BytesIO(header + END), "a.tar"), tmp_path, "garbled"
        )


Disk = namedtuple("Disk", "total used free")


@pytest.mark.parametrize("kind", ["zip", "tar", "files"])
def test_what_does_not_fit_the_disk_is_refused(tmp_path, monkeypatch, kind):
    def usage(path):
        return Disk(10**12, 10**12, 100_004_000 - sum(map(len, files_in(path).values())))

    monkeypatch.setattr("shutil.disk_usage", usage)
    files = {"1.jpg": PIXELS, "2.jpg": PIXELS}
    start = {
        "zip": lambda: import_archive(io.BytesIO(ordinary_zip(files)), "a.zip"),
        "tar": lambda: import_archive(io.BytesIO(ordinary_tar(files)), "a.tar"),
        "files": lambda: import_files(
            [(name, io.BytesIO(content * 2)) for name, content in files.items()], "a", 2
        ),
    }[kind]
    assert_refused(start, tmp_path, "only 100.0 MB of the disk")


def test_a_disk_that_fills_up_meanwhile_is_refused(tmp_path, monkeypatch):
    free = iter([10**12, 10**12, 1000])
    monkeypatch.setattr("shutil.disk_usage", lambda path: Disk(10**12, 0, next(free)))
    archive = ordinary_zip({f"{number}.jpg": PIXELS for number in range(5)})
    assert_refused(
        lambda: import_archive(io.BytesIO(archive), "a.zip"), tmp_path, "only 1.0 kB of the disk"
    )


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_data_folder_that_cannot_be_written_to_is_an_error(home):
    (home / "data").mkdir(parents=True)
    (home / "data").chmod(0o555)
    with pytest.raises(DataError, match=r"cannot be written to .*THAW_HOME"):
        finish(import_archive(io.BytesIO(ordinary_zip()), "a.zip"))


def test_a_home_that_is_no_folder_is_an_error(home):
    home.parent.mkdir(parents=True)
    home.write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot be written to .*THAW_HOME"):
        finish(import_archive(io.BytesIO(ordinary_zip()), "a.zip"))


def test_the_wrong_files_are_refused(tmp_path):
    assert_refused(
        lambda: import_archive(tmp_path / "gone.zip", "gone.zip"), tmp_path, "there is no such file"
    )


def test_a_folder_is_no_archive(tmp_path):
    (tmp_path / "a.zip").mkdir()
    assert_refused(
        lambda: import_archive(tmp_path / "a.zip", "a.zip"), tmp_path, "there is no such file"
    )


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b"])
def test_a_path_that_cannot_be_is_refused(tmp_path, name):
    assert_refused(
        lambda: import_archive(tmp_path / name, name), tmp_path, "no such file|cannot be read"
    )


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"hello\n" * 200, b"\x1f\x8b", b"BZh", b"PK\3\4", bytes(600), b"\xfd7zXZ\0"],
)
def test_what_is_no_archive_is_refused(tmp_path, content):
    assert_refused(
        lambda: import_archive(io.BytesIO(content), "a.zip"),
        tmp_path,
        "no ZIP or TAR archive at all|holds no image",
    )


def test_an_archive_that_cannot_be_read_is_refused(tmp_path):
    class Broken(io.BytesIO):
        def read(self, count=-1):
            raise OSError("the cable fell out")

    assert_refused(
        lambda: import_archive(Broken(ordinary_zip()), "a.zip"), tmp_path, "the cable fell out"
    )


ORDINARY = {
    ".zip": ordinary_zip(),
    **{f".tar{kind}": pack(ordinary_tar()) for kind, pack in KINDS.items()},
}


@pytest.mark.parametrize("suffix", ORDINARY)
def test_an_archive_cut_short_anywhere_is_refused(tmp_path, suffix):
    archive = ORDINARY[suffix]
    content_end = (
        ordinary_tar().rindex(PIXELS[:100]) + 512 if suffix == ".tar" else len(archive) - 1
    )
    for length in sorted({*range(0, content_end, content_end // 40), content_end}):
        with pytest.raises(DataError, match="damaged, cut short"):
            finish(import_archive(io.BytesIO(archive[:length]), f"a{suffix}"))
    assert everything(tmp_path) == dict.fromkeys(
        ("far", "far/down", "far/down/home", "far/down/home/data"), "folder"
    )


@pytest.mark.parametrize("name", ["evil\n.zip", "\x1b[2J.zip", "\ud800.zip", "a" * 3000 + ".zip"])
def test_the_archives_own_name_is_shown_on_one_line(tmp_path, name):
    assert_refused(lambda: import_archive(io.BytesIO(b""), name), tmp_path, "damaged")


# --- What is imported ------------------------------------------------------------------------------------------------------

TWO = {"cat/1.jpg": PIXELS, "dog/2.png": PIXELS[:100]}


@pytest.mark.parametrize("suffix", ORDINARY)
@pytest.mark.parametrize("named", [None, "a.zip", "a.tar.xz"])  # the content counts, not the name
def test_an_ordinary_archive_becomes_an_image_folder(home, tmp_path, suffix, named):
    file = tmp_path / f"a{suffix}"
    file.write_bytes(ORDINARY[suffix])
    folder = finish(import_archive(file, named or file.name))
    assert folder == home / "data" / f"a-{hashlib.sha256(ORDINARY[suffix]).hexdigest()[:8]}"
    assert files_in(folder) == TWO
    assert os.listdir(home / "data") == [folder.name]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_with_long_and_foreign_names(form):
    files = {
        "Käse 日本/1.jpg": PIXELS,
        "dog's <b>/" + "x" * 90 + "/" + "y" * 60 + ".png": b"2",
        "a/b.jpg": b"",
    }
    assert files_in(finish(import_archive(io.BytesIO(ordinary_tar(files, form)), "a.tar"))) == files


def test_a_zip_of_every_ordinary_make():
    files = {"Käse 日本/1.jpg": PIXELS, "dog/2.jpg": b"", "dog/3.jpg": b"3"}
    for options in ({"compression": zipfile.ZIP_STORED}, {"compression": zipfile.ZIP_DEFLATED}):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", **options) as archive:
            archive.comment = b"Made by hand: PK\5\6, for example."
            archive.mkdir("dog")
            for name, content in files.items():
                archive.writestr(name, content)
        assert files_in(finish(import_archive(buffer, "a.zip"))) == files


def test_a_zip_that_was_written_to_a_pipe_has_its_sizes_behind_the_content():
    class Pipe(io.RawIOBase):
        written = b""

        def writable(self):
            return True

        def write(self, content):
            self.written += bytes(content)
            return len(content)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/1.jpg", PIXELS)
        with archive.open("dog/2.png", "w", force_zip64=True) as file:
            file.write(PIXELS[:100])
    assert files_in(finish(import_archive(io.BytesIO(pipe.written), "a.zip"))) == TWO


def test_a_zip_with_64_bit_fields():
    wide = struct.pack("<2H2QQ", 1, 24, len(PIXELS), len(PIXELS), 0)
    says = {"size": 0xFFFFFFFF, "packed": 0xFFFFFFFF}
    other = struct.pack("<2H4s", 0x5455, 4, b"time")
    archive = zipped(
        entry("1.jpg", method=0, says=says, offset=0xFFFFFFFF, extra=other + wide), wide=1
    )
    assert files_in(finish(import_archive(io.BytesIO(archive), "a.zip"))) == {"1.jpg": PIXELS}


def test_a_last_comment_that_runs_into_the_end_of_the_directory_harms_nothing():
    archive = bytearray(zipped(entry("1.jpg"), entry("2.jpg")))
    at = archive.rindex(b"PK\1\2") + 32
    archive[at : at + 2] = struct.pack("<H", 22)
    assert files_in(finish(import_archive(io.BytesIO(archive), "a.zip"))) == {
        "1.jpg": PIXELS,
        "2.jpg": PIXELS,
    }


def test_content_after_the_size_that_an_entry_says_is_left_out():
    """A bomb that is consistent about being none: what comes out is what it says."""
    prefix = {"size": 1000, "crc": zlib.crc32(bytes(1000))}
    archive = zipped(
        entry("1.jpg", bytes(5_000_000), says=prefix),
        entry("2.jpg", bytes(2000), method=0, says=prefix),
    )
    assert files_in(finish(import_archive(io.BytesIO(archive), "a.zip"))) == {
        "1.jpg": bytes(1000),
        "2.jpg": bytes(1000),
    }


def test_lies_in_an_entrys_own_header_are_not_believed():
    archive = zipped(entry("1.jpg", local={"size": 7, "packed": 1 << 31, "crc": 0}), entry("2.jpg"))
    assert files_in(finish(import_archive(io.BytesIO(archive), "a.zip"))) == {
        "1.jpg": PIXELS,
        "2.jpg": PIXELS,
    }


@pytest.mark.parametrize(
    ("raw", "flags", "name"),
    [
        ("é.jpg".encode(), 0x800, "é.jpg"),
        ("é.jpg".encode(), 0, "é.jpg"),
        (b"\x82.jpg", 0, "é.jpg"),
        (b"a.jpg", 0, "a.jpg"),
    ],
    ids=["UTF-8", "UTF-8 that does not say so", "DOS", "ASCII"],
)
def test_names_in_a_zip_in_either_encoding(raw, flags, name):
    assert list(
        files_in(finish(import_archive(io.BytesIO(zipped(entry(raw, flags=flags))), "a.zip")))
    ) == [name]


@pytest.mark.fuzz
def test_more_entries_than_a_short_directory_can_count():
    """Programs that know no 64-bit fields lose the upper digits."""
    entries = [entry(f"{number}.txt", b"", method=0) for number in range(0x10000)]
    archive = zipped(*entries, entry("1.jpg"), count=1)
    assert files_in(finish(import_archive(io.BytesIO(archive), "a.zip"))) == {"1.jpg": PIXELS}


def test_backslashes_part_folders():
    for archive in (zip_named("train\\cat\\1.jpg"), tar_named("train\\cat\\1.jpg")):
        assert list(files_in(finish(import_archive(io.BytesIO(archive), "a")))) == [
            "train/cat/1.jpg"
        ]


LEFTOVERS = {
    "photos/": b"",
    "photos/cat/": b"",
    "photos/cat/1.jpg": PIXELS,
    "photos/cat/._1.jpg": b"x",
    "photos/cat/Thumbs.db": b"x",
    "photos/.DS_Store": b"x",
    "photos/.git/1.jpg": b"x",
    "photos/README.txt": b"x",
    "photos/more.zip": b"x",
    "photos/dog/2.PNG": b"2",
    "__MACOSX/photos/cat/3.jpg": b"x",
}


@pytest.mark.parametrize("kind", ["zip", "tar", "files"])
def test_a_folder_around_it_stays_and_what_systems_leave_behind_goes(kind):
    steps = {
        "zip": lambda: import_archive(io.BytesIO(ordinary_zip(LEFTOVERS)), "photos.zip"),
        "tar": lambda: import_archive(io.BytesIO(ordinary_tar(LEFTOVERS)), "photos.tar"),
        "files": lambda: import_files(
            [(name, io.BytesIO(content)) for name, content in LEFTOVERS.items()], "photos", 11
        ),
    }[kind]()
    folder = finish(steps)
    assert files_in(folder) == {"photos/cat/1.jpg": PIXELS, "photos/dog/2.PNG": b"2"}
    assert sorted(entry.name for entry in (folder / "photos").iterdir()) == ["cat", "dog"]


def test_a_tar_as_the_system_packs_it(tmp_path):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "1.jpg").write_bytes(PIXELS)
    for name in (".", "photos"):
        with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
            archive.add(tmp_path / "photos", name)
        folder = finish(import_archive(tmp_path / "a.tgz", "a.tgz"))
        assert files_in(folder) == {"cat/1.jpg" if name == "." else "photos/cat/1.jpg": PIXELS}


def test_a_tar_in_several_compressed_streams_with_padding():
    content = ordinary_tar()
    for pack in (gzip.compress, bz2.compress, lzma.compress):
        parts = [pack(content[:700]), pack(b""), pack(content[700:]), bytes(512)]
        assert files_in(finish(import_archive(io.BytesIO(b"".join(parts)), "a.tar"))) == TWO


@pytest.mark.fuzz
@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (".gz", "padding"),
        (".xz", "padding"),
        (".gz", "empty streams"),
        (".bz2", "empty streams"),
        (".xz", "empty streams"),
    ],
)
def test_an_archive_that_goes_on_without_content_is_refused_after_a_bounded_part_of_it(
    tmp_path, kind, what
):
    more = bytes(4096) if what == "padding" else KINDS[kind](b"")
    archive = io.BytesIO(KINDS[kind](ordinary_tar()) + more * (20_000_000 // len(more)))
    assert_refused(
        lambda: import_archive(archive, f"a.tar{kind}"),
        tmp_path,
        r"more than 16\.0 MB of padding or empty streams",
    )
    assert archive.tell() < 17_000_000


def test_padding_may_begin_where_a_piece_ends():
    content = ordinary_tar({"1.jpg": random.Random(1).randbytes(100_000)})
    first = gzip.compress(content[: (1 << 16) - 23], 0)  # stored, with headers of 23 bytes
    assert len(first) == 1 << 16
    archive = first + bytes(512) + gzip.compress(content[(1 << 16) - 23 :])
    assert list(files_in(finish(import_archive(io.BytesIO(archive), "a.tgz")))) == ["1.jpg"]


@pytest.mark.parametrize("more", [-1, 0, 1, 100, 258, 1000, 5000])
def test_what_is_left_in_a_decompressor_at_the_end_of_its_input_is_not_lost(more):
    image = bytes((1 << 20) + more)
    assert files_in(
        finish(import_archive(io.BytesIO(ordinary_zip({"1.bmp": image})), "a.zip"))
    ) == {"1.bmp": image}


def test_an_empty_file_may_be_packed_into_nothing():
    archive = zipped(entry("1.jpg", b"", packed=b""), entry("2.jpg"))
    assert files_in(finish(import_archive(io.BytesIO(archive), "a.zip"))) == {
        "1.jpg": b"",
        "2.jpg": PIXELS,
    }


def test_an_image_of_several_pieces_arrives_whole():
    large = random.Random(1).randbytes(3_500_000)
    archives = [
        ordinary_zip({"1.jpg": large, "2.jpg": PIXELS}),
        ordinary_tar({"1.jpg": large, "2.jpg": PIXELS}),
    ]
    for archive in (*archives, gzip.compress(archives[1]), bz2.compress(archives[1])):
        assert files_in(finish(import_archive(io.BytesIO(archive), "a"))) == {
            "1.jpg": large,
            "2.jpg": PIXELS,
        }


def test_an_extended_header_for_all_files_is_gone_by():
    content = (
        pax(b"g", comment=b"1234567890abcdef")
        + member("cat/1.jpg")
        + block("dir", 77, b"5")
        + member("2.jpg", kind=b"7")
    )
    assert files_in(finish(import_archive(io.BytesIO(content + END), "a.tar"))) == {
        "cat/1.jpg": PIXELS,
        "2.jpg": PIXELS,
    }


def test_a_size_in_an_extended_header_counts():
    content = (
        pax(size=b"%d" % len(PIXELS), mtime=b"1.5")
        + block("1.jpg")
        + padded(PIXELS)
        + member("2.jpg")
    )
    assert files_in(finish(import_archive(io.BytesIO(content + END), "a.tar"))) == {
        "1.jpg": PIXELS,
        "2.jpg": PIXELS,
    }


def test_the_limits_themselves_are_allowed():
    limits = Limits(
        total_bytes=9000, entries=6, ratio=1, ratio_from_bytes=9000, file_bytes=3000, depth=3
    )
    archive = zip_named("a/b/c/1.jpg", "2.jpg", "a/3.jpg")
    assert len(files_in(finish(import_archive(io.BytesIO(archive), "a.zip", limits)))) == 3


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_folders_and_files_can_be_read_by_others_and_run_by_nobody(mask):
    archive = zipped(entry("1.jpg", mode=stat.S_IFREG | 0o7777))
    before = os.umask(mask)
    try:
        folder = finish(import_archive(io.BytesIO(archive), "a.zip"))
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o7777 == 0o755
    assert (folder / "1.jpg").stat().st_mode & 0o7777 == 0o644


def test_the_same_archive_twice_is_unpacked_once(home, monkeypatch):
    folder = finish(import_archive(io.BytesIO(ORDINARY[".zip"]), "a.zip"))
    (folder / "cat" / "1.jpg").unlink()
    before = everything(home)
    monkeypatch.setattr("tempfile.mkdtemp", None)
    assert finish(import_archive(io.BytesIO(ORDINARY[".zip"]), "a.zip")) == folder
    assert everything(home) == before


def test_the_same_name_with_other_content_is_another_folder(home):
    folders = {finish(import_archive(io.BytesIO(ORDINARY[suffix]), "a.zip")) for suffix in ORDINARY}
    assert len(folders) == len(ORDINARY)
    assert sorted(os.listdir(home / "data")) == sorted(folder.name for folder in folders)


def test_another_import_of_the_same_that_was_first_wins(home):
    slow = import_archive(io.BytesIO(ORDINARY[".zip"]), "a.zip")
    while not list(home.glob("data/.thaw-unpacking-*/new/cat")):
        next(slow)
    folder = finish(import_archive(io.BytesIO(ORDINARY[".zip"]), "a.zip"))
    (folder / "first").write_bytes(b"")
    assert finish(slow) == folder
    assert (folder / "first").exists()
    assert os.listdir(home / "data") == [folder.name]


def test_a_file_in_the_place_of_the_folder_is_an_error(home):
    folder = finish(import_archive(io.BytesIO(ORDINARY[".zip"]), "a.zip"))
    folder.rename(folder.with_name("away"))
    folder.write_bytes(b"")
    with pytest.raises(DataError, match="cannot be written to"):
        finish(import_archive(io.BytesIO(ORDINARY[".zip"]), "a.zip"))
    assert sorted(os.listdir(home / "data")) == sorted(["away", folder.name])


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("photos.zip", "photos"),
        ("Photos.TAR.GZ", "Photos"),
        ("C:\\fakepath\\photos.tgz", "photos"),
        ("../../photos.zip", "photos"),
        ("/etc/photos.zip", "photos"),
        (".hidden.zip", "hidden"),
        ("my photos (2).zip", "my-photos-2"),
        ("v1.5_x-y.zip", "v1.5_x-y"),
        ("Ka\u0308se 日本.zip", "K\u00e4se-日本"),
        ("..", "images"),
        ("", "images"),
        (".zip", "images"),
        ("\0\ud800.zip", "images"),
        ("a" * 300 + ".zip", "a" * 60),
        ("日" * 300 + ".zip", "日" * 60),
        ("a" * 59 + "-b.zip", "a" * 59),
    ],
)
def test_the_folder_is_named_after_the_archive_as_far_as_is_safe(home, name, stem):
    folder = finish(import_archive(io.BytesIO(ORDINARY[".zip"]), name))
    assert folder.parent == home / "data"
    assert folder.name.rpartition("-")[0] == stem


@pytest.mark.parametrize(
    "name",
    ["a.zip", "A.ZIP", "a.b.tar", "a.tar.gz", "a.tgz", "a.tar.bz2", "a.tbz2", "a.tar.xz", "a.txz"],
)
def test_archives_are_known_by_their_suffix(name):
    assert is_archive(name)


@pytest.mark.parametrize("name", ["a", "zip", "a.jpg", "a.gz", "a.zip.txt", "a.rar", "a.7z", ""])
def test_other_files_are_none(name):
    assert not is_archive(name)


def test_progress_is_in_packed_bytes_and_never_goes_back():
    images = {f"{number}.jpg": random.Random(number).randbytes(400_000) for number in range(9)}
    for archive in (ordinary_zip(images), gzip.compress(ordinary_tar(images), 1)):
        steps = list(import_archive(io.BytesIO(archive), "a"))
        done = [step.done for step in steps]
        assert {step.total for step in steps} == {len(archive)}
        assert done == sorted(done)
        assert done[-1] == len(archive)
        assert any(0.3 < step / len(archive) < 0.7 for step in done)
        assert len(steps) < 110


def test_progress_is_seldom_however_many_entries_there_are():
    images = {f"{number}.jpg": b"x" for number in range(1000)}
    for archive in (ordinary_zip(images), ordinary_tar(images)):
        assert 40 < len(list(import_archive(io.BytesIO(archive), "a"))) < 130


def test_an_open_file_stays_open_and_is_read_from_its_beginning():
    file = io.BytesIO(ORDINARY[".tar.gz"])
    file.seek(100)
    assert files_in(finish(import_archive(file, "a.tgz"))) == TWO
    assert not file.closed


# --- Interruptions ---------------------------------------------------------------------------------------------------------


def started(suffix):
    if suffix == "files":
        return import_files([(name, io.BytesIO(content)) for name, content in TWO.items()], "a", 2)
    return import_archive(io.BytesIO(ORDINARY[suffix]), "a")


@pytest.mark.parametrize("kind", [*ORDINARY, "files"])
@pytest.mark.parametrize("end", ["close", "drop", KeyboardInterrupt, RuntimeError, DataError])
def test_an_interruption_at_any_moment_leaves_nothing(home, kind, end):
    moments = len(list(started(kind)))
    for folder in (home / "data").iterdir():
        folder.rename(home / f"away-{kind}-{folder.name}")
    staged = 0
    for moment in range(1, moments):
        steps = started(kind)
        for _ in range(moment):
            next(steps)
        staged += bool(list(home.glob("data/.thaw-unpacking-*")))
        if end == "close":
            steps.close()
        elif end == "drop":
            del steps
        else:
            with pytest.raises(end):
                steps.throw(end("enough"))
        if any((home / "data").iterdir()):  # the last moment is after the end
            assert moment == moments - 1
            assert not list(home.glob("data/.thaw-unpacking-*"))
            return
    assert staged > 0


# --- Files from a browser --------------------------------------------------------------------------------------------------


def imported(files, name="photos", limits=SMALL):
    return finish(
        import_files(
            [(path, io.BytesIO(content)) for path, content in files.items()],
            name,
            len(files),
            limits,
        )
    )


def test_files_from_a_browser_become_an_image_folder(home):
    folder = imported(TWO)
    assert files_in(folder) == TWO
    assert folder.parent == home / "data"
    assert folder.name.startswith("photos-")
    assert os.listdir(home / "data") == [folder.name]
    assert folder.stat().st_mode & 0o777 == 0o755
    assert (folder / "cat" / "1.jpg").stat().st_mode & 0o777 == 0o644


def test_the_same_files_in_any_order_are_one_folder(home):
    folder = imported(TWO)
    (folder / "cat" / "1.jpg").unlink()
    assert imported(dict(reversed(TWO.items()))) == folder
    assert imported({**TWO, "notes.txt": b"not an image"}) == folder
    assert not (folder / "cat" / "1.jpg").exists()
    assert os.listdir(home / "data") == [folder.name]


@pytest.mark.parametrize(
    "other",
    [
        {"cat/1.jpg": PIXELS, "dog/3.png": PIXELS[:100]},
        {**TWO, "dog/2.png": b"x"},
        {"1.jpg": PIXELS},
    ],
)
def test_other_names_or_contents_are_another_folder(other):
    assert imported(TWO) != imported(other)


def test_progress_of_files_is_in_files():
    files = [(name, io.BytesIO(content)) for name, content in LEFTOVERS.items()]
    assert list(import_files(files, "photos", 11)) == [Step(done, 11) for done in range(1, 12)]


def test_files_are_taken_one_after_the_other():
    taken = []

    def files():
        for name in ("1.jpg", "2.jpg"):
            taken.append(name)
            yield name, io.BytesIO(PIXELS)

    steps = import_files(files(), "a", 2)
    next(steps)
    assert taken == ["1.jpg"]


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({}, "holds no image"),
        ({"notes.txt": b"x", ".1.jpg": b"x"}, "holds no image"),
        ({"1.jpg": bytes(50_001)}, "“1.jpg” is larger than 50.0 kB"),
        ({f"{number}.jpg": bytes(45_000) for number in range(5)}, "more than 200.0 kB"),
        ({f"{number}.jpg": b"x" for number in range(21)}, "more than 20 files"),
        ({f"{number}.txt": b"x" for number in range(21)}, "more than 20 files"),
    ],
)
def test_files_that_are_too_few_or_too_many_are_refused(tmp_path, files, why):
    assert_refused(
        lambda: import_files(
            [(p, io.BytesIO(c)) for p, c in files.items()], "a", len(files), SMALL
        ),
        tmp_path,
        why,
    )


# --- At random -------------------------------------------------------------------------------------------------------------

PARTS = st.sampled_from(
    [
        "/",
        "\\",
        "..",
        ".",
        "C:",
        "~",
        "\0",
        "\n",
        "",
        " ",
        "a",
        "A",
        "é",
        "e\u0301",
        ".jpg",
        ".png",
        "\ud800",
    ]
)
NAME = st.lists(
    PARTS | st.text(st.characters() | st.characters(categories=["Cc", "Cs"]), max_size=3),
    max_size=6,
).map("".join)
FILE_NAME = NAME | NAME.map(lambda name: name + ".jpg")


def assert_contained(start):
    """Whatever an import does, it does in its own folder of the data folder, or it leaves nothing and says why."""
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        home = Path(root, "far", "down", "home")
        data = home / "data"
        data.mkdir(parents=True)
        patch.setenv("THAW_HOME", str(home))
        try:
            folder = finish(start())
        except DataError as error:
            refusal = str(error)
        else:
            refusal = None
        if refusal:
            assert len(refusal.splitlines()) == 1
            assert list(data.iterdir()) == []
        else:
            assert list(data.iterdir()) == [folder]
            assert not any(
                path.is_symlink() or not (path.is_file() or path.is_dir())
                for path in folder.rglob("*")
            )
            assert files_in(folder)
        assert [path.name for path in Path(root).rglob("*") if not path.is_relative_to(data)] == [
            "far",
            "down",
            "home",
        ]


@quick
@given(st.lists(FILE_NAME, min_size=1, max_size=4))
def test_any_names_are_refused_or_stay_in_the_folder(names):
    raw = [name.encode("utf-8", "surrogatepass") for name in names]
    zip_archive = zipped(
        *(entry(name, flags=flags) for name, flags in zip(raw, (0x800, 0, 0x800, 0), strict=False))
    )
    headers = [long_name, lambda name: pax(path=name)]
    tar_archive = b"".join(
        headers[number % 2](name) + member("x") for number, name in enumerate(raw)
    )
    short_archive = b"".join(member(name[:100], prefix=name[100:255]) for name in raw)
    for archive in (zip_archive, tar_archive + END, short_archive + END):
        assert_contained(
            lambda archive=archive: import_archive(io.BytesIO(archive), names[0], SMALL)
        )
    assert_contained(
        lambda: import_files(
            [(name, io.BytesIO(PIXELS)) for name in names], names[0], len(names), SMALL
        )
    )


@quick
@given(
    st.sampled_from([b"", b"PK\3\4", b"PK\5\6", b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0"]),
    st.binary(max_size=1500),
)
def test_any_bytes_are_refused_in_words(magic, content):
    assert_contained(lambda: import_archive(io.BytesIO(magic + content), "a.zip", SMALL))


@settings(quick, max_examples=200)
@given(
    st.sampled_from(sorted(ORDINARY)),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=4),
    st.booleans(),
)
def test_any_damage_is_refused_or_harmless(suffix, changes, at_the_edges):
    """Flips bytes anywhere, or where the headers and directories are: contents are long and compressed."""
    archive = bytearray(ORDINARY[suffix])
    for position, value in changes:
        if at_the_edges:
            position = position % 600 if position % 2 else len(archive) - 1 - position % 600
        archive[position % len(archive)] ^= value
    assert_contained(lambda: import_archive(io.BytesIO(archive), "a.zip", SMALL))


@quick
@given(st.data())
def test_any_damage_inside_a_compressed_tar_is_refused_or_harmless(data):
    archive = bytearray(
        pax(path=b"cat/1.jpg", mtime=b"1.5")
        + member("x")
        + long_name(b"dog/" + b"2" * 120)
        + member("y")
        + END
    )
    for _ in range(data.draw(st.integers(1, 5))):
        start = data.draw(st.sampled_from([0, 512, 1024, 4608, 5120, 5632]))
        archive[start + data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
        header = archive[start : start + 148] + b" " * 8 + archive[start + 156 : start + 512]
        if data.draw(st.booleans()):
            archive[start + 148 : start + 156] = b"%06o\0 " % sum(header)
    assert_contained(lambda: import_archive(io.BytesIO(gzip.compress(archive, 1)), "a.tgz", SMALL))


@pytest.mark.parametrize("suffix", ORDINARY)
def test_every_single_byte_of_a_small_archive_may_be_wrong(suffix):
    archive = ORDINARY[suffix]
    for position in range(0, len(archive), 1 + len(archive) // 80):
        damaged = archive[:position] + bytes([archive[position] ^ 0xFF]) + archive[position + 1 :]
        assert_contained(partial(import_archive, io.BytesIO(damaged), "a.zip", SMALL))
