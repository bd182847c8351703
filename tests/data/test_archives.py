"""Import of archives and browser uploads: refusals, imported images, and leftovers."""

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
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_core.data import tars
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
TWO = {"cat/1.jpg": PIXELS, "dog/2.png": PIXELS[:100]}
SMALL_LIMITS = {"total_bytes": 200_000, "entries": 20, "ratio_from_bytes": 100_000}
SMALL = Limits(**SMALL_LIMITS, ratio=50, file_bytes=50_000, depth=3)
KINDS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Return a home three folders down.

    A name that leads out of the home still ends up in ``tmp_path``.
    """
    folder = tmp_path / "far" / "down" / "home"
    monkeypatch.setenv("THAW_HOME", str(folder))
    return folder


def list_everything(folder):
    """Return {path: status} of all below a folder; folders without their times."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        status = path.lstat()
        found[path.relative_to(folder).as_posix()] = (
            "folder"
            if stat.S_ISDIR(status.st_mode)
            else (status.st_mode, status.st_size, status.st_mtime_ns)
        )
    return found


def read_files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


def open_files(files):
    """Open {name: content}, or pairs, as a browser hands files over."""
    pairs = files.items() if isinstance(files, dict) else files
    return [(name, io.BytesIO(content)) for name, content in pairs]


def unpack(archive, name="a.zip", *limits):
    """Import an archive, and return the imported files as {path: content}."""
    return read_files(finish(import_archive(io.BytesIO(archive), name, *limits)))


def assert_refused(start, tmp_path, why):
    """Run an import that is refused in one line, leaves nothing behind and touches nothing."""
    (tmp_path / "far" / "down" / "home" / "data").mkdir(parents=True, exist_ok=True)
    (tmp_path / "bystander.jpg").write_bytes(b"untouched")
    before = list_everything(tmp_path)
    with pytest.raises(DataError, match=why) as refused:
        finish(start())
    message = str(refused.value)
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    assert len(message) < 500
    assert "was not imported: " in message
    assert message.endswith(".")
    assert list_everything(tmp_path) == before


def assert_archive_refused(archive, tmp_path, why, name="a.zip", *limits):
    assert_refused(lambda: import_archive(io.BytesIO(archive), name, *limits), tmp_path, why)


def flatten(table):
    """Turn {reason: {name: case}} into parameters (case, reason)."""
    return [
        pytest.param(case, why, id=name)
        for why, cases in table.items()
        for name, case in cases.items()
    ]


# --- ZIP, by hand ---------------------------------------------------------------------------------


def deflate(content):
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(content) + packer.flush()


PACKERS = {8: deflate, 12: bz2.compress}


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
    """Describe one entry of a ZIP.

    Args:
        name: name of the entry.
        content: its content.
        method: its compression method.
        flags: its flags.
        mode: its Unix mode.
        extra: its extra field.
        packed: packed bytes in place of the packed content.
        says: false fields of the directory.
        local: false fields of the entry's own header.
        offset: false offset of the entry.
    """
    raw = name if isinstance(name, bytes) else name.encode("utf-8", "surrogatepass")
    data = PACKERS.get(method, bytes)(content) if packed is None else packed
    true = {"name": raw, "flags": flags, "method": method, "crc": zlib.crc32(content)}
    true |= {"packed": len(data), "size": len(content)}
    own = {"data": data, "mode": mode, "extra": extra, "offset": offset}
    return {**true, **(says or {}), **own, "local": {**true, **(local or {})}}


def make_zip(
    *entries, count=None, comment=b"", comment_length=None, shift=0, span=None, disk=0, wide=None
):
    """Write a ZIP of entries. The keywords are false fields of its end record."""
    body, directory = io.BytesIO(), io.BytesIO()
    for one in entries:
        own, offset = one["local"], body.tell() if one["offset"] is None else one["offset"]
        numbers = own["flags"], own["method"], 0, 33, own["crc"], own["packed"], own["size"]
        lengths = len(own["name"]), 0
        header = struct.pack("<4s5H3L2H", b"PK\3\4", 20, *numbers, *lengths)
        body.write(header + own["name"] + one["data"])
        numbers = one["flags"], one["method"], 0, 33, one["crc"], one["packed"], one["size"]
        lengths = len(one["name"]), len(one["extra"]), 0, 0, 0, one["mode"] << 16, offset
        header = struct.pack("<4s6H3L5H2L", b"PK\1\2", 0x314, 20, *numbers, *lengths)
        directory.write(header + one["name"] + one["extra"])
    start, directory = body.tell(), directory.getvalue()
    count = len(entries) if count is None else count
    span = len(directory) if span is None else span
    end = b""
    if wide is not None:
        numbers = 44, 45, 45, 0, 0, wide, wide, span, start + shift
        end += struct.pack("<4sQ2H2L4Q", b"PK\6\6", *numbers)
        end += struct.pack("<4sLQL", b"PK\6\7", 0, start + len(directory), 1)
    length = len(comment) if comment_length is None else comment_length
    numbers = disk, disk, count, count, span, start + shift, length
    return (
        body.getvalue() + directory + end + struct.pack("<4s4H2LH", b"PK\5\6", *numbers) + comment
    )


def make_ordinary_zip(files=TWO, compression=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.comment = b"Made by hand: PK\5\6, for example."
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


# --- TAR, by hand ---------------------------------------------------------------------------------

END = bytes(1024)


def encode(name):
    return name if isinstance(name, bytes) else name.encode("utf-8", "surrogatepass")


def block(name, size=0, kind=b"0", *, link=b"", prefix=b"", magic=b"ustar\x0000", size_field=None):
    size_field = b"%011o\0" % size if size_field is None else size_field
    owner = b"0000644\0", b"0000000\0", b"0000000\0"
    fields = encode(name), *owner, size_field, b"00000000000\0", b" " * 8, kind, link, magic, prefix
    header = bytearray(struct.pack("100s8s8s8s12s12s8s1s100s8s80x155s12x", *fields))
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def pad(content):
    return content + bytes(-len(content) % 512)


def member(name, content=PIXELS, kind=b"0", **options):
    return block(name, len(content), kind, **options) + pad(content)


def record(keyword, value):
    body = b" " + keyword.encode() + b"=" + value + b"\n"
    lengths = range(len(body), len(body) + 10)
    length = next(length for length in lengths if length == len(body) + len(str(length)))
    return str(length).encode() + body


def pax(kind=b"x", **records):
    content = (record(key.replace("_", "."), value) for key, value in records.items())
    return member("PaxHeader", b"".join(content), kind)


def long_name(name):
    return member("././@LongLink", name + b"\0", b"L")


def make_ordinary_tar(files=TWO, form=tarfile.PAX_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_hand_made_archives_are_what_the_standard_library_reads():
    content = make_zip(entry("cat/1.jpg"), entry("é.png", b"x", method=0), wide=2)
    archive = zipfile.ZipFile(io.BytesIO(content))
    assert archive.testzip() is None
    assert archive.namelist() == ["cat/1.jpg", "é.png"]
    named = long_name(b"a/" * 60 + b"2.jpg") + member("short")
    content = member("cat/1.jpg") + named + pax(path="é.jpg".encode()) + member("s") + END
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        assert archive.getnames() == ["cat/1.jpg", "a/" * 60 + "2.jpg", "é.jpg"]
        assert archive.extractfile("é.jpg").read() == PIXELS


# --- Names that are refused -----------------------------------------------------------------------

# One of each kind; all that a name can be are in test_names.py.
NAMES = {
    "absolute": ("/evil.jpg", "absolute"),
    "dots": ("../evil.jpg", "leads out"),
    "dots that come back": ("cat/../evil.jpg", "leads out"),
    "dots for Windows": ("cat\\..\\..\\evil.jpg", "leads out"),
    "drive": ("C:evil.jpg", "names a drive"),
    "control characters": ("cat/\x1b[2J\n.jpg", "control characters"),
    "lone surrogate": ("cat/\ud800.jpg", "not valid Unicode"),
    "very long": ("a" * 50_000 + ".jpg", "255 bytes"),
    "very deep": ("a/" * 20_000 + "1.jpg", "more than 3 folders"),
    "not an image": ("../notes.txt", "leads out"),
    "noise": ("../.DS_Store", "leads out"),
    "folder": ("../evil/", "leads out"),
}
CAFE = unicodedata.normalize("NFD", "é.jpg")
PAIRS = {
    "twice": ("cat/1.jpg", "cat/1.jpg", "is there twice"),
    "twice, written otherwise": ("cat/1.jpg", "./cat//1.jpg", "is there twice"),
    "twice, the other separator": ("cat/1.jpg", "cat\\1.jpg", "is there twice"),
    "twice, no image": ("notes.txt", "notes.txt", "is there twice"),
    "case": ("cat/a.jpg", "cat/A.JPG", "only in case"),
    "case of a folder": ("cat/1.jpg", "Cat/2.jpg", "only in case"),
    "sharp s": ("straße.jpg", "STRASSE.jpg", "only in case"),
    "normal form": ("é.jpg", CAFE, "accents"),
    "normal form of a folder": ("é.jpg/1.jpg", f"{CAFE}/2.jpg", "accents"),
    "normal form and case": ("É.jpg", CAFE, "accents"),
    "file, then folder": ("cat.jpg", "cat.jpg/1.jpg", "both a file and a folder"),
    "folder, then file": ("cat.jpg/1.jpg", "cat.jpg", "both a file and a folder"),
    "file, then an empty folder": ("cat.jpg", "cat.jpg/", "both a file and a folder"),
    "an empty folder, then file": ("cat.jpg/", "cat.jpg", "both a file and a folder"),
    "file, then folder of another case": ("cat.jpg", "CAT.jpg/1.jpg", "only in case"),
}


def make_zip_of_names(*names):
    return make_zip(*(entry(name, b"" if name.endswith("/") else PIXELS) for name in names))


def make_tar_of_names(*names):
    """Write names into the header if they fit, else into a GNU header."""
    raw = map(encode, names)
    parts = (member(n) if len(n) <= 100 else long_name(n) + member("short") for n in raw)
    return b"".join(parts) + END


def make_pax_of_names(*names):
    return b"".join(pax(path=encode(name)) + member("short") for name in names) + END


WRITERS = {
    "zip": make_zip_of_names,
    "tar": make_tar_of_names,
    "pax": make_pax_of_names,
    "files": None,
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("case", [*NAMES.values(), *PAIRS.values()], ids=[*NAMES, *PAIRS])
def test_names_that_no_import_may_hold_are_refused(tmp_path, write, case):
    *names, why = case
    names = ["good.jpg", *names]
    if write:
        assert_archive_refused(write(*names), tmp_path, why, "a.zip", SMALL)
    else:
        files = open_files([(name, PIXELS) for name in names])
        assert_refused(lambda: import_files(files, "a", len(files), SMALL), tmp_path, why)


# --- ZIPs that are refused ------------------------------------------------------------------------

GOOD_ENTRY, GOOD = entry("cat/good.jpg"), member("cat/good.jpg")
ZEROS = bytes(300_000)  # more than SMALL allows, in one file and in all
LINK, LINK_MODE = b"../../outside", stat.S_IFLNK | 0o777
WIDE = 0xFFFFFFFF  # "see the extra field"
LOCATOR = struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)


def zip_one(content=PIXELS, **options):
    return make_zip(entry("a.jpg", content, **options))


def zip_two(name="a.jpg", content=PIXELS, **options):
    return make_zip(GOOD_ENTRY, entry(name, content, **options))


def extra_field(length, *numbers):
    """Write an extra field of 64-bit numbers that names its own length."""
    return struct.pack(f"<2H{len(numbers)}Q", 1, length, *numbers)


def list_entries(count, name="{}.jpg", content=PIXELS):
    return [entry(name.format(number), content) for number in range(count)]


def nest_entries():
    """Write a ZIP whose second entry lies inside the first one's content."""
    inner = make_zip(entry("b.jpg", method=0))
    first = entry("a.jpg", inner[: inner.index(b"PK\1\2")], method=0)
    second = entry("b.jpg", method=0, offset=30 + len("a.jpg"))
    return make_zip(first, {**second, "local": entry("c")["local"]})


def share_content():
    """Write a ZIP whose entries share one content, as a quoted bomb does."""
    quoted = ({**entry("a.jpg", offset=0), "name": b"%d.jpg" % number} for number in range(5))
    return make_zip(entry("a.jpg"), *quoted)


ZIPS = {
    "symbolic link": {
        "symbolic link": make_zip(entry("l.jpg", LINK, mode=LINK_MODE)),
        "link that is no image": zip_two("readme", LINK, mode=LINK_MODE),
    },
    "(both a file and a folder|symbolic link)": {
        "link, then a file through it": make_zip(
            entry("out", LINK, method=0, mode=LINK_MODE), entry("out/evil.jpg")
        )
    },
    "named pipe": {"named pipe": zip_two("p.jpg", b"", mode=stat.S_IFIFO | 0o644)},
    "device": {
        "character device": zip_two("d.jpg", b"", mode=stat.S_IFCHR | 0o644),
        "block device": zip_two("d.jpg", b"", mode=stat.S_IFBLK | 0o644),
    },
    "socket": {"socket": zip_two("s.jpg", b"", mode=stat.S_IFSOCK | 0o644)},
    "unknown kind": {"unknown kind": zip_two("s.jpg", b"", mode=0o050644)},
    "control characters": {
        "NUL": zip_two(b"cat/a.jpg\0../../x"),
        "NUL before a suffix": zip_two(b"cat/a.txt\0.jpg"),
        "control character in DOS letters": zip_two(b"\x01\xe9.jpg", flags=0),
    },
    "is no name": {"no name": zip_two(b"")},
    "not valid Unicode": {"not the UTF-8 that it claims": zip_two(b"caf\xe9.jpg", flags=0x800)},
    "encrypted": {
        "encrypted": zip_two(flags=0x801),
        "strongly encrypted": zip_two(flags=0x841),
        "masked headers": zip_two(flags=0x2800),
        "encrypted text": zip_two("a.txt", flags=0x801),
    },
    "method 12": {
        "bzip2": zip_two(method=12),
        "bzip2 bomb that says it is none": zip_one(ZEROS, method=12, says={"size": 1000}),
    },
    "method 9": {"Deflate64": zip_two(method=9)},
    "method 14": {"LZMA": zip_two(method=14)},
    "method 99": {"AES": zip_two(method=99)},
    "method 1234": {"unknown method": zip_two(method=1234)},
    "not what its directory says": {
        "another name inside": zip_one(local={"name": b"../a.jp"}),
        "encrypted, says the entry only": zip_one(local={"flags": 1}),
        "another method inside": zip_one(local={"method": 0}),
    },
    "Bad CRC": {
        "size too small": zip_one(says={"size": 10}),
        "size too small in both": zip_one(says={"size": 10}, local={"size": 10}),
        "size nought": zip_one(says={"size": 0}),
        "stored, two sizes": zip_one(method=0, says={"size": 2000}),
        "wrong checksum": zip_one(says={"crc": 1}),
        "bomb that says it is none": zip_one(ZEROS, says={"size": 1000}, local={"size": 1000}),
    },
    "smaller than it says": {
        "size too large": zip_one(says={"size": 5000}),
        "size too large, stored": zip_one(method=0, says={"size": 5000}),
    },
    "more than 200.0 kB": {
        "size far too large": zip_one(says={"size": WIDE - 1}),
        "size in the extra field": zip_one(says={"size": WIDE}, extra=extra_field(8, 1 << 62)),
        "large in all": make_zip(*list_entries(5, content=PIXELS * 14)),
    },
    "Corrupt zip64": {
        "extra field too short": zip_one(
            says={"size": WIDE, "packed": WIDE}, extra=extra_field(8, 3000)
        )
    },
    "damaged": {
        "extra field longer than itself": zip_one(
            says={"size": WIDE}, extra=extra_field(800, 3000)
        ),
        "packed too small": zip_one(says={"packed": 100}),
        "garbage for Deflate": zip_one(packed=b"\xff" * 500),
        "directory too short": make_zip(GOOD_ENTRY, entry("a.jpg"), span=58),
        "locator and hardly more": b"PK\3\4" + LOCATOR + make_zip(),
    },
    "larger than 50.0 kB|more than 50 times|more than 200": {"bomb": zip_one(ZEROS)},
    "more than 50 times its size": {
        "bomb of many": make_zip(*list_entries(4, content=bytes(40_000)))
    },
    "“a.jpg” is larger than 50.0 kB": {"one large file": zip_one(PIXELS * 20)},
    "overlap": {
        "packed too large": zip_one(says={"packed": 100_000}),
        "the same content twice": share_content(),
        "an entry past the end": zip_two(offset=0x7FFFFFFF),
        "an entry far past the end": zip_two(offset=WIDE, extra=extra_field(8, (1 << 64) - 1)),
    },
    "overlap|not what its directory says": {
        "an entry inside another": nest_entries(),
        "an entry in the directory": zip_two(offset=3100),
        "no header at its place": make_zip(entry("a.jpg"), entry("b.jpg", offset=2000)),
    },
    "more than 20 files": {
        "too many": make_zip(*list_entries(21)),
        "too many, hidden": make_zip(*list_entries(21), count=1),
        "too many folders": make_zip(*list_entries(6, "{}/a/b/c.jpg")),
        "one folder too many times": make_zip(GOOD_ENTRY, *[entry("cat/", b"")] * 20),
        "claims too many": make_zip(GOOD_ENTRY, count=60_000),
        "claims far too many": make_zip(GOOD_ENTRY, wide=1 << 60),
    },
    "not complete": {
        "claims more than it has": make_zip(GOOD_ENTRY, count=3),
        "claims fewer than it has": make_zip(GOOD_ENTRY, entry("a.jpg"), count=1),
    },
    "not where it says": {
        "directory too long": make_zip(GOOD_ENTRY, span=1 << 31),
        "directory elsewhere": make_zip(GOOD_ENTRY, shift=-5),
        "directory past the end": make_zip(GOOD_ENTRY, shift=1 << 30),
        "something in between": make_zip(GOOD_ENTRY).replace(b"PK\5\6", b"xPK\5\6"),
    },
    "Bad magic number for central directory": {
        "directory garbled": make_zip(GOOD_ENTRY).replace(b"PK\1\2", b"PK\1\3")
    },
    "directory is missing": {
        "no directory": make_zip(GOOD_ENTRY)[:-22],
        "comment cut": make_zip(GOOD_ENTRY, comment=b"hello", comment_length=50),
        "something after the end": make_zip(GOOD_ENTRY) + b"more",
        "locator without a record": make_zip(GOOD_ENTRY).replace(
            b"PK\5\6", bytes(56) + LOCATOR + b"PK\5\6"
        ),
    },
    "part of several": {
        "one part of several": make_zip(GOOD_ENTRY, disk=1),
        "one part of several, with its mark": b"PK\7\x08" + make_zip(GOOD_ENTRY, disk=1, shift=4),
    },
    "holds no image": {
        "empty": make_zip(),
        "no image": make_zip(entry("readme.txt"), entry("more.zip", make_zip(GOOD_ENTRY))),
        "only noise": make_zip_of_names("__MACOSX/cat/1.jpg", ".hidden/1.jpg", "._1.jpg"),
        "only a folder": make_zip(entry("cat.jpg/", b"")),
    },
}


@pytest.mark.parametrize(("archive", "why"), flatten(ZIPS))
def test_hostile_zip_is_refused(tmp_path, archive, why):
    why = rf"^photos\.zip was.*({why})"
    assert_archive_refused(archive, tmp_path, why, "photos.zip", SMALL)


# --- TARs that are refused ------------------------------------------------------------------------

BIG_NUMBER = b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7
NEGATIVE = b"\xff" * 12


def sparse_old():
    header = bytearray(block("sparse.jpg", 512, b"S", magic=b"ustar  \0"))
    header[386:410] = b"%011o\0%011o\0" % (0, 512)
    header[483:495] = b"%011o\0" % 4096
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(512)


def write_link(name, kind=b"2"):
    return block(name, kind=kind, link=LINK)


def members(count, name="{}.jpg", content=b"x"):
    return b"".join(member(name.format(number), content) for number in range(count))


TARS = {
    "symbolic link": {
        "symbolic link": write_link("l.jpg"),
        "link, then a file through it": write_link("out") + member("out/evil.jpg"),
        "link that is no image": GOOD + write_link("readme"),
        "link among noise": GOOD + write_link(".git/HEAD"),
        "link with a long target": member("././@LongLink", LINK * 50, b"K")
        + block("l.jpg", kind=b"2"),
        "link by an extended header": pax(linkpath=b"/etc/passwd") + block("l.jpg", kind=b"2"),
    },
    "both a file and a folder": {
        "link over a file": member("out/1.jpg") + write_link("out") + member("out/evil.jpg")
    },
    "hard link": {
        "hard link": write_link("h.jpg", b"1"),
        "hard link to a good file": GOOD + block("h.jpg", kind=b"1", link=b"cat/good.jpg"),
    },
    "device": {
        "character device": GOOD + block("d.jpg", kind=b"3"),
        "block device": GOOD + block("d.jpg", kind=b"4"),
    },
    "named pipe": {"named pipe": GOOD + block("p.jpg", kind=b"6")},
    "sparse": {
        "sparse, old": GOOD + sparse_old(),
        "sparse, 0.0": GOOD + pax(GNU_sparse_size=b"9", GNU_sparse_numblocks=b"1") + member("s"),
        "sparse, 0.1": GOOD + pax(GNU_sparse_map=b"0,1,99999999,1") + member("s.jpg"),
        "sparse, 1.0": GOOD + pax(GNU_sparse_major=b"1", GNU_sparse_minor=b"0") + member("s.jpg"),
        "sparse, for all": pax(b"g", GNU_sparse_map=b"0,1") + GOOD,
    },
    "unknown kind": {
        "volume label": block("label", kind=b"V") + GOOD,
        "continued elsewhere": member("c.jpg", kind=b"M") + GOOD,
        "unknown kind": GOOD + member("u.jpg", kind=b"Z"),
    },
    "is no name": {"no name": GOOD + member(b"")},
    "not valid Unicode": {
        "no UTF-8": GOOD + member(b"caf\xe9.jpg"),
        "no UTF-8 in an extended header": GOOD + pax(path=b"caf\xe9.jpg") + member("s"),
        "binary in an extended header": GOOD
        + pax(hdrcharset=b"BINARY", path=b"caf\xe9.jpg")
        + member("s"),
    },
    "control characters": {
        "NUL in a long name": GOOD + long_name(b"a.jpg\0../../x.jpg") + member("s"),
        "NUL in an extended header": GOOD + pax(path=b"a.jpg\0.txt") + member("s"),
    },
    "leads out": {
        "dots in the prefix": GOOD + member("evil.jpg", prefix=b".."),
        "one name for all": pax(b"g", path=b"../evil.jpg") + GOOD,
        "folder that leads out": GOOD + block("../evil", kind=b"5"),
    },
    "absolute": {"absolute by its prefix": GOOD + member("evil.jpg", prefix=b"/tmp")},
    "is there twice": {"one name for two": pax(b"g", path=b"a.jpg") + GOOD + GOOD},
    "too early": {
        "size past the end": GOOD + block("a.jpg", 100_000),
        "size far past the end": GOOD + block("a.jpg", size_field=BIG_NUMBER),
        "size in an extended header": GOOD + pax(size=b"9" * 20) + member("a.jpg"),
    },
    "negative": {
        "negative size": GOOD + block("a.jpg", size_field=NEGATIVE),
        "negative extended header": GOOD + block("PaxHeader", size_field=NEGATIVE, kind=b"x"),
    },
    "damaged": {
        "size without digits": GOOD + block("a.jpg", size_field=b"zzzzzzzzzzz\0"),
        "size of ten thousand digits": GOOD + pax(size=b"9" * 10_000) + member("a.jpg"),
    },
    "garbled": {
        "negative size in an extended header": GOOD + pax(size=b"-512") + member("a.jpg"),
        "size in words": GOOD + pax(size=b"large") + member("a.jpg"),
        "extended header": GOOD + member("P", b"hello world\n", b"x") + member("a.jpg"),
        "length nought": GOOD + member("P", b"0 a=b\n", b"x") + member("a.jpg"),
        "negative length": GOOD + member("P", b"-1 path=b\n\n", b"x") + member("a.jpg"),
        "length too long": GOOD + member("P", b"99 path=b\n", b"x") + member("a.jpg"),
        "length too short": GOOD + member("P", b"5 path=b\n", b"x") + member("a.jpg"),
        "digits only": GOOD + member("P", b"1" * 100_000, b"x") + member("a.jpg"),
    },
    "“a.jpg” is larger than 50.0 kB": {"one large file": member("a.jpg", PIXELS * 20)},
    "more than 200.0 kB": {
        "large in all": members(5, content=PIXELS * 14),
        "large, nothing of it wanted": GOOD + member("video.mp4", ZEROS),
        "nothing but extended headers": pax(comment=b"x") * 300,
    },
    "header of": {
        "huge extended header": GOOD + block("PaxHeader", 3_000_000_000, b"x"),
        "huge header for all": GOOD + block("PaxHeader", 20_000_000, b"g"),
        "huge Solaris header": GOOD + block("PaxHeader", 20_000_000, b"X"),
        "huge long name": GOOD + block("././@LongLink", 20_000_000, b"L"),
        "huge long link": GOOD + block("././@LongLink", size_field=BIG_NUMBER, kind=b"K"),
    },
    "bad checksum": {
        "wrong checksum": GOOD + member("a.jpg").replace(b"a.jpg", b"b.jpg", 1),
        "wrong checksum at once": member("a.jpg").replace(b"a.jpg", b"b.jpg", 1),
    },
    "more than 20 files": {
        "too many": members(21),
        "one folder too many times": GOOD + block("cat", kind=b"5") * 20,
        "too many folders": members(6, "{}/a/b/c.jpg"),
    },
    "follows after its end": {"a second archive": GOOD + END + member("dog/1.jpg")},
    "holds no image": {
        "no image": member("readme.txt") + member("more.tar", GOOD + END),
        "empty": b"",
        "only a folder": block("cat.jpg/", kind=b"5"),
        "only noise": member("__MACOSX/1.jpg") + member("a/.b/1.jpg"),
    },
}


@pytest.mark.parametrize(("content", "why"), flatten(TARS))
def test_hostile_tar_is_refused_packed_and_plain(tmp_path, content, why):
    # The ratio has its own test.
    limits = Limits(**SMALL_LIMITS, ratio=10_000, file_bytes=50_000, depth=3)
    for kind in ("", ".gz"):
        archive = KINDS[kind](content + END)
        assert_archive_refused(archive, tmp_path, why, f"a.tar{kind}", limits)


# --- What takes too much --------------------------------------------------------------------------


@contextmanager
def limit_memory(limit):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


BOMB_LIMITS = Limits(ratio_from_bytes=2_000_000)


@pytest.mark.parametrize(
    ("kind", "name"), [(".gz", "a.jpg"), (".bz2", "notes.txt"), (".xz", "nothing")]
)
def test_tar_bomb_is_refused_after_a_bounded_part_of_it(tmp_path, kind, name):
    """The zeros are an image, are skipped, or follow the archive's end."""
    zeros = bytes(16_000_000)
    packed = KINDS[kind](GOOD + (END + zeros if name == "nothing" else member(name, zeros) + END))
    # xz remembers 8 MB by itself
    with limit_memory(14_000_000):
        assert_archive_refused(
            packed, tmp_path, "more than 200 times its size", f"a.tar{kind}", BOMB_LIMITS
        )


@pytest.mark.parametrize("claim", [16_000_000, 1_900_000])
def test_zip_bomb_is_refused_after_a_bounded_part_of_it(tmp_path, claim):
    """One bomb names its true size, and one a size that would pass."""
    archive = zip_one(bytes(16_000_000), says={"size": claim})
    with limit_memory(12_000_000):
        assert_archive_refused(
            archive, tmp_path, "more than 200 times its size|Bad CRC", "a.zip", BOMB_LIMITS
        )


@pytest.mark.train
def test_zip_directory_beyond_reason_is_refused_before_it_is_read(tmp_path):
    span = 200 << 20
    archive = tmp_path / "a.zip"
    with archive.open("wb") as file:
        file.write(b"PK\3\4")
        file.seek(span)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, span, 0, 0))
    with limit_memory(12_000_000):
        assert_refused(
            lambda: import_archive(archive, "a.zip"), tmp_path, "directory takes 209.7 MB"
        )


def test_xz_dictionary_beyond_reason_is_refused(tmp_path):
    archive = bytearray(lzma.compress(make_ordinary_tar()))
    archive[16] = 40  # 4 GiB
    archive[20:24] = struct.pack("<L", zlib.crc32(archive[12:20]))
    assert_archive_refused(archive, tmp_path, "[Mm]emory", "a.tar.xz")


def test_extended_header_of_a_megabyte_is_read_in_linear_time(tmp_path):
    # takes tarfile's regular expression half an hour
    header = member("P", b"1" * 1_000_000 + b" ", b"x")
    with in_time("a long extended header"):
        assert_archive_refused(header + END, tmp_path, "garbled", "a.tar")


PADDING = [(".gz", False), (".xz", False), (".gz", True), (".bz2", True), (".xz", True)]


@pytest.mark.parametrize(("kind", "streams"), PADDING)
def test_padding_and_empty_streams_are_refused_beyond_reason(tmp_path, monkeypatch, kind, streams):
    monkeypatch.setattr(tars, "_MOST_SILENT", 160_000)
    more = KINDS[kind](b"") if streams else bytes(4096)
    archive = io.BytesIO(KINDS[kind](make_ordinary_tar()) + more * (400_000 // len(more)))
    start = partial(import_archive, archive, f"a.tar{kind}")
    assert_refused(start, tmp_path, "more than 160.0 kB of padding or empty streams")
    assert archive.tell() < 300_000


Disk = namedtuple("Disk", "total used free")


@pytest.mark.parametrize("kind", ["zip", "tar", "files"])
def test_import_that_does_not_fit_the_disk_is_refused(tmp_path, monkeypatch, kind):
    def measure(path):
        return Disk(10**12, 10**12, 100_004_000 - sum(map(len, read_files(path).values())))

    monkeypatch.setattr("shutil.disk_usage", measure)
    files = {"1.jpg": PIXELS * 2, "2.jpg": PIXELS * 2}
    archive = make_ordinary_tar(files) if kind == "tar" else make_ordinary_zip(files)
    assert_refused(
        lambda: (
            import_files(open_files(files), "a", 2)
            if kind == "files"
            else import_archive(io.BytesIO(archive), "a")
        ),
        tmp_path,
        "only 100.0 MB of the disk",
    )


def test_disk_that_fills_up_meanwhile_is_refused(tmp_path, monkeypatch):
    free = iter([10**12, 10**12, 1000])
    monkeypatch.setattr("shutil.disk_usage", lambda path: Disk(10**12, 0, next(free)))
    archive = make_ordinary_zip({f"{number}.jpg": PIXELS for number in range(5)})
    assert_archive_refused(archive, tmp_path, "only 1.0 kB of the disk")


# --- What is no archive ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "take",
    [
        pytest.param(
            lambda home: (home / "data").chmod(0o555),
            id="read only",
            marks=pytest.mark.skipif(
                os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere"
            ),
        ),
        pytest.param(
            lambda home: (home / "data").rmdir() or home.rmdir() or home.write_bytes(b""),
            id="a file",
        ),
    ],
)
def test_home_that_cannot_be_written_to_is_an_error(home, take):
    (home / "data").mkdir(parents=True)
    take(home)
    with pytest.raises(DataError, match=r"cannot be written to .*THAW_HOME"):
        unpack(ORDINARY[".zip"])


@pytest.mark.parametrize("name", ["gone.zip", "folder.zip", "a" * 5000, "a\0b"])
def test_path_of_no_file_is_refused(tmp_path, name):
    (tmp_path / "folder.zip").mkdir()
    start = partial(import_archive, tmp_path / name, name)
    assert_refused(start, tmp_path, "there is no such file|cannot be read")


NO_ARCHIVES = [b"", b"x", b"hello\n" * 200, b"\x1f\x8b", b"BZh", b"PK\3\4", bytes(600)]


@pytest.mark.parametrize("content", [*NO_ARCHIVES, b"\xfd7zXZ\0"])
def test_content_that_is_no_archive_is_refused(tmp_path, content):
    assert_archive_refused(content, tmp_path, "no ZIP or TAR archive at all|holds no image")


def test_archive_that_cannot_be_read_is_refused(tmp_path):
    class Broken(io.BytesIO):
        def read(self, count=-1):
            raise OSError("the cable fell out")

    start = partial(import_archive, Broken(make_ordinary_zip()), "a.zip")
    assert_refused(start, tmp_path, "the cable fell out")


@pytest.mark.parametrize("name", ["evil\n.zip", "\x1b[2J.zip", "\ud800.zip", "a" * 3000 + ".zip"])
def test_name_of_the_archive_is_shown_on_one_line(tmp_path, name):
    assert_archive_refused(b"", tmp_path, "damaged", name)


ORDINARY = {".zip": make_ordinary_zip()}
ORDINARY |= {f".tar{kind}": pack(make_ordinary_tar()) for kind, pack in KINDS.items()}


@pytest.mark.parametrize("suffix", ORDINARY)
def test_archive_cut_short_anywhere_is_refused(tmp_path, suffix):
    archive = ORDINARY[suffix]
    end = make_ordinary_tar().rindex(PIXELS[:100]) + 512 if suffix == ".tar" else len(archive) - 1
    for length in sorted({*range(0, end, end // 20), end}):
        with pytest.raises(DataError, match="damaged, cut short"):
            unpack(archive[:length], f"a{suffix}")
    folders = "far", "far/down", "far/down/home", "far/down/home/data"
    assert list_everything(tmp_path) == dict.fromkeys(folders, "folder")


# --- What is imported -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ORDINARY)
def test_ordinary_archive_becomes_an_image_folder_whatever_its_name(home, tmp_path, suffix):
    file = tmp_path / f"a{suffix}"
    file.write_bytes(ORDINARY[suffix])
    for name in (file.name, "a.zip", "a.tar.xz"):
        folder = finish(import_archive(file, name))
        assert folder == home / "data" / f"a-{hashlib.sha256(ORDINARY[suffix]).hexdigest()[:8]}"
        assert read_files(folder) == TWO
        assert os.listdir(home / "data") == [folder.name]


def pipe_zip():
    """Write a ZIP to a pipe, so that sizes follow the content."""

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
    return pipe.written


def zip_of_wide_fields():
    other = struct.pack("<2H4s", 0x5455, 4, b"time")
    says, extra = (
        {"size": WIDE, "packed": WIDE},
        other + extra_field(24, len(PIXELS), len(PIXELS), 0),
    )
    return make_zip(entry("1.jpg", method=0, says=says, offset=WIDE, extra=extra), wide=1)


def zip_with_comment_into_its_end():
    archive = bytearray(make_zip_of_names("1.jpg", "2.jpg"))
    at = archive.rindex(b"PK\1\2") + 32
    archive[at : at + 2] = struct.pack("<H", 22)
    return bytes(archive)


def make_understating_zip():
    """Write a bomb that consistently claims to be none. Its content has the size that it names."""
    prefix = {"size": 1000, "crc": zlib.crc32(bytes(1000))}
    packed = entry("1.jpg", bytes(5_000_000), says=prefix)
    return make_zip(packed, entry("2.jpg", bytes(2000), method=0, says=prefix))


def pack_in_streams(pack):
    content = make_ordinary_tar()
    return b"".join([pack(content[:700]), pack(b""), pack(content[700:]), bytes(512)])


def tar_with_padding_where_a_piece_ends():
    content = make_ordinary_tar({"1.jpg": LARGE[:100_000]})
    first = gzip.compress(content[: (1 << 16) - 23], 0)  # stored, with headers of 23 bytes
    assert len(first) == 1 << 16
    return first + bytes(512) + gzip.compress(content[(1 << 16) - 23 :])


def chain_headers(count):
    names = long_name(b"../x.jpg") * (count - 1) + long_name(b"cat/1.jpg")
    return names + member("short") + END


PAIR = {"1.jpg": PIXELS, "2.jpg": PIXELS}
FOREIGN = {
    "Käse 日本/1.jpg": PIXELS,
    "dog's <b>/" + "x" * 90 + "/" + "y" * 60 + ".png": b"2",
    "a/b.jpg": b"",
}
LARGE = random.Random(1).randbytes(2_200_000)  # several pieces
PIECES = {"1.jpg": LARGE, "2.jpg": PIXELS}
LYING = entry("1.jpg", local={"size": 7, "packed": 1 << 31, "crc": 0})
HEADER_FOR_ALL = pax(b"g", comment=b"1234567890abcdef")
SIZE_OUTSIDE = pax(size=b"%d" % len(PIXELS), mtime=b"1.5") + block("1.jpg") + pad(PIXELS)
IMPORTED = {
    "stored ZIP": (lambda: make_ordinary_zip(FOREIGN, zipfile.ZIP_STORED), FOREIGN),
    "deflated ZIP": (lambda: make_ordinary_zip(FOREIGN), FOREIGN),
    "ZIP written to a pipe": (pipe_zip, TWO),
    "ZIP with 64-bit fields": (zip_of_wide_fields, {"1.jpg": PIXELS}),
    "comment that runs into the end": (zip_with_comment_into_its_end, PAIR),
    "more content than it says": (make_understating_zip, dict.fromkeys(PAIR, bytes(1000))),
    "entry that lies about itself": (lambda: make_zip(LYING, entry("2.jpg")), PAIR),
    "empty file, packed into nothing": (
        lambda: make_zip(entry("1.jpg", b"", packed=b""), entry("2.jpg")),
        PAIR | {"1.jpg": b""},
    ),
    "UTF-8 name": (lambda: make_zip(entry("é.jpg")), {"é.jpg": PIXELS}),
    "UTF-8 name that does not say so": (
        lambda: make_zip(entry("é.jpg", flags=0)),
        {"é.jpg": PIXELS},
    ),
    "DOS name": (lambda: make_zip(entry(b"\x82.jpg", flags=0)), {"é.jpg": PIXELS}),
    "backslashes in a ZIP": (
        lambda: make_zip_of_names("train\\cat\\1.jpg"),
        {"train/cat/1.jpg": PIXELS},
    ),
    "backslashes in a TAR": (
        lambda: make_tar_of_names("train\\cat\\1.jpg"),
        {"train/cat/1.jpg": PIXELS},
    ),
    "USTAR": (lambda: make_ordinary_tar(FOREIGN, tarfile.USTAR_FORMAT), FOREIGN),
    "GNU TAR": (lambda: make_ordinary_tar(FOREIGN, tarfile.GNU_FORMAT), FOREIGN),
    "PAX": (lambda: make_ordinary_tar(FOREIGN), FOREIGN),
    "two headers in a chain": (lambda: chain_headers(2), {"cat/1.jpg": PIXELS}),
    "3,000 headers in a chain": (lambda: chain_headers(3000), {"cat/1.jpg": PIXELS}),
    "header for all files": (
        lambda: HEADER_FOR_ALL + member("1.jpg") + member("2.jpg", kind=b"7") + END,
        PAIR,
    ),
    "folder that claims a size": (
        lambda: member("1.jpg") + block("dir", 77, b"5") + member("2.jpg") + END,
        PAIR,
    ),
    "size in an extended header": (lambda: SIZE_OUTSIDE + member("2.jpg") + END, PAIR),
    "gzip streams": (lambda: pack_in_streams(gzip.compress), TWO),
    "bzip2 streams": (lambda: pack_in_streams(bz2.compress), TWO),
    "xz streams": (lambda: pack_in_streams(lzma.compress), TWO),
    "padding where a piece ends": (
        tar_with_padding_where_a_piece_ends,
        {"1.jpg": LARGE[:100_000]},
    ),
    "ZIP of several pieces": (lambda: make_ordinary_zip(PIECES), PIECES),
    "TAR of several pieces": (lambda: make_ordinary_tar(PIECES), PIECES),
    "gzip of several pieces": (lambda: gzip.compress(make_ordinary_tar(PIECES), 1), PIECES),
    "bzip2 of several pieces": (lambda: bz2.compress(make_ordinary_tar(PIECES), 1), PIECES),
}
# What is left in a decompressor at the end of its input is not lost.
for more in (-1, 0, 1, 258, 5000):
    zeros = {"1.bmp": bytes((1 << 20) + more)}
    IMPORTED[f"zeros, 1 MiB and {more}"] = partial(make_ordinary_zip, zeros), zeros


@pytest.mark.parametrize(("make", "expected"), IMPORTED.values(), ids=IMPORTED)
def test_every_make_of_archive_is_imported_whole(make, expected):
    assert unpack(make()) == expected


@pytest.mark.fuzz
def test_zip_with_more_entries_than_a_short_directory_can_count_is_read():
    """Programs without 64-bit fields write the number modulo 2**16."""
    entries = [entry(f"{number}.txt", b"", method=0) for number in range(0x10000)]
    assert unpack(make_zip(*entries, entry("1.jpg"), count=1)) == {"1.jpg": PIXELS}


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
STARTS = {
    "zip": lambda: import_archive(io.BytesIO(make_ordinary_zip(LEFTOVERS)), "photos.zip"),
    "tar": lambda: import_archive(io.BytesIO(make_ordinary_tar(LEFTOVERS)), "photos.tar"),
    "files": lambda: import_files(open_files(LEFTOVERS), "photos", 11),
}


@pytest.mark.parametrize("kind", STARTS)
def test_leftovers_of_systems_go_and_a_folder_around_stays(kind):
    folder = finish(STARTS[kind]())
    assert read_files(folder) == {"photos/cat/1.jpg": PIXELS, "photos/dog/2.PNG": b"2"}
    assert sorted(entry.name for entry in (folder / "photos").iterdir()) == ["cat", "dog"]


@pytest.mark.parametrize(("name", "image"), [(".", "cat/1.jpg"), ("photos", "photos/cat/1.jpg")])
def test_tar_as_the_system_packs_it_is_imported(tmp_path, name, image):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "1.jpg").write_bytes(PIXELS)
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        archive.add(tmp_path / "photos", name)
    assert unpack((tmp_path / "a.tgz").read_bytes()) == {image: PIXELS}


def test_limits_themselves_are_allowed():
    sizes = {"total_bytes": 9000, "ratio_from_bytes": 9000, "file_bytes": 3000}
    limits = Limits(**sizes, entries=6, ratio=1, depth=3)
    assert len(unpack(make_zip_of_names("a/b/c/1.jpg", "2.jpg", "a/3.jpg"), "a.zip", limits)) == 3


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_folders_and_files_can_be_read_by_others_and_run_by_nobody(mask):
    archive = make_zip(entry("1.jpg", mode=stat.S_IFREG | 0o7777))
    before = os.umask(mask)
    try:
        folder = finish(import_archive(io.BytesIO(archive), "a.zip"))
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o7777 == 0o755
    assert (folder / "1.jpg").stat().st_mode & 0o7777 == 0o644


def start_import(kind):
    if kind == "files":
        return import_files(open_files(TWO), "a", 2)
    return import_archive(io.BytesIO(ORDINARY[kind]), "a.zip")


def test_same_archive_twice_is_unpacked_once(home, monkeypatch):
    folder = finish(start_import(".zip"))
    (folder / "cat" / "1.jpg").unlink()
    before = list_everything(home)
    monkeypatch.setattr("tempfile.mkdtemp", None)
    assert finish(start_import(".zip")) == folder
    assert list_everything(home) == before


def test_same_name_with_other_content_is_another_folder(home):
    folders = {finish(start_import(suffix)) for suffix in ORDINARY}
    assert len(folders) == len(ORDINARY)
    assert sorted(os.listdir(home / "data")) == sorted(folder.name for folder in folders)


def test_another_import_of_the_same_that_was_first_wins(home):
    slow = start_import(".zip")
    while not list(home.glob("data/.thaw-unpacking-*/new/cat")):
        next(slow)
    folder = finish(start_import(".zip"))
    (folder / "first").write_bytes(b"")
    assert finish(slow) == folder
    assert (folder / "first").exists()
    assert os.listdir(home / "data") == [folder.name]


def test_file_in_the_place_of_the_folder_is_an_error(home):
    folder = finish(start_import(".zip"))
    folder.rename(folder.with_name("away"))
    folder.write_bytes(b"")
    with pytest.raises(DataError, match="cannot be written to"):
        finish(start_import(".zip"))
    assert sorted(os.listdir(home / "data")) == sorted(["away", folder.name])


STEMS = {
    "photos.zip": "photos",
    "Photos.TAR.GZ": "Photos",
    "C:\\fakepath\\photos.tgz": "photos",
    "../../photos.zip": "photos",
    "/etc/photos.zip": "photos",
    ".hidden.zip": "hidden",
    "my photos (2).zip": "my-photos-2",
    "v1.5_x-y.zip": "v1.5_x-y",
    "Ka\u0308se 日本.zip": "K\u00e4se-日本",
    "..": "images",
    "": "images",
    ".zip": "images",
    "\0\ud800.zip": "images",
    "a" * 300 + ".zip": "a" * 60,
    "日" * 300 + ".zip": "日" * 60,
    "a" * 59 + "-b.zip": "a" * 59,
}


def test_folder_is_named_after_the_archive_as_far_as_is_safe(home):
    for name, stem in STEMS.items():
        folder = finish(import_archive(io.BytesIO(ORDINARY[".zip"]), name))
        assert folder.parent == home / "data"
        assert folder.name.rpartition("-")[0] == stem


def test_archives_are_known_by_their_suffix():
    ours = ["a.zip", "A.ZIP", "a.b.tar", "a.tar.gz", "a.tgz", "a.tar.bz2", "a.tbz2", "a.txz"]
    others = ["", "a", "zip", "a.jpg", "a.gz", "a.zip.txt", "a.rar", "a.7z"]
    assert [name for name in (*ours, *others) if is_archive(name)] == ours


def test_progress_is_in_packed_bytes_and_never_goes_back():
    images = {f"{number}.jpg": LARGE[number:][:400_000] for number in range(5)}
    for archive in (make_ordinary_zip(images), gzip.compress(make_ordinary_tar(images), 1)):
        steps = list(import_archive(io.BytesIO(archive), "a"))
        done = [step.done for step in steps]
        assert {step.total for step in steps} == {len(archive)}
        assert done == sorted(done)
        assert done[-1] == len(archive)
        assert any(0.3 < step / len(archive) < 0.7 for step in done)
        assert len(steps) < 110


def test_progress_is_seldom_however_many_entries_there_are():
    images = {f"{number}.jpg": b"x" for number in range(400)}
    for archive in (make_ordinary_zip(images), make_ordinary_tar(images)):
        assert 10 < len(list(import_archive(io.BytesIO(archive), "a"))) < 130


def test_open_file_stays_open_and_is_read_from_its_beginning():
    file = io.BytesIO(ORDINARY[".tar.gz"])
    file.seek(100)
    assert read_files(finish(import_archive(file, "a.tgz"))) == TWO
    assert not file.closed


ENDS = ["drop", KeyboardInterrupt, RuntimeError, DataError]


@pytest.mark.parametrize(
    ("kind", "end"),
    [*((kind, "close") for kind in (*ORDINARY, "files")), *((".zip", end) for end in ENDS)],
)
def test_interruption_at_any_moment_leaves_nothing(home, kind, end):
    moments = len(list(start_import(kind)))
    for folder in (home / "data").iterdir():
        folder.rename(home / f"away-{kind}-{folder.name}")
    staged = 0
    for moment in range(1, moments):
        steps = start_import(kind)
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


# --- Files from a browser -------------------------------------------------------------------------


def import_dict(files, name="photos", limits=SMALL):
    return finish(import_files(open_files(files), name, len(files), limits))


def test_files_from_a_browser_become_an_image_folder(home):
    folder = import_dict(TWO)
    assert read_files(folder) == TWO
    assert folder.parent == home / "data"
    assert folder.name.startswith("photos-")
    assert os.listdir(home / "data") == [folder.name]
    assert folder.stat().st_mode & 0o777 == 0o755
    assert (folder / "cat" / "1.jpg").stat().st_mode & 0o777 == 0o644


def test_same_files_in_any_order_are_one_folder_and_others_another(home):
    folder = import_dict(TWO)
    (folder / "cat" / "1.jpg").unlink()
    assert import_dict(dict(reversed(TWO.items()))) == folder
    assert import_dict({**TWO, "notes.txt": b"not an image"}) == folder
    assert not (folder / "cat" / "1.jpg").exists()
    assert os.listdir(home / "data") == [folder.name]
    renamed = {"cat/1.jpg": PIXELS, "dog/3.png": PIXELS[:100]}
    for other in (renamed, {**TWO, "dog/2.png": b"x"}, {"1.jpg": PIXELS}):
        assert import_dict(other) != folder


def test_files_are_taken_one_after_the_other_and_counted():
    steps = list(import_files(open_files(LEFTOVERS), "photos", 11))
    assert steps == [Step(done, 11) for done in range(1, 12)]
    files = iter(open_files(PAIR))
    next(import_files(files, "a", 2))
    assert len(list(files)) == 1


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
    start = partial(import_files, open_files(files), "a", len(files), SMALL)
    assert_refused(start, tmp_path, why)


# --- At random ------------------------------------------------------------------------------------

PARTS = ["/", "\\", "..", ".", "C:", "~", "\0", "\n", "", " ", "a", "A", "é", "e\u0301", ".jpg"]
LETTERS = st.characters() | st.characters(categories=["Cc", "Cs"])
NAME = st.lists(
    st.sampled_from([*PARTS, ".png", "\ud800"]) | st.text(LETTERS, max_size=3), max_size=6
).map("".join)
FILE_NAME = NAME | NAME.map(lambda name: name + ".jpg")


def assert_contained(start):
    """Run an import that writes only into its own folder, or leaves nothing and gives a reason."""
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
            paths = list(folder.rglob("*"))
            assert not any(p.is_symlink() or not (p.is_file() or p.is_dir()) for p in paths)
            assert read_files(folder)
        outside = [path.name for path in Path(root).rglob("*") if not path.is_relative_to(data)]
        assert outside == ["far", "down", "home"]


def assert_archive_contained(archive, name="a.zip"):
    assert_contained(lambda: import_archive(io.BytesIO(archive), name, SMALL))


@pytest.mark.fuzz
@quick
@given(st.lists(FILE_NAME, min_size=1, max_size=4))
def test_any_names_are_refused_or_stay_in_the_folder(names):
    raw = list(map(encode, names))
    flags = (0x800, 0, 0x800, 0)
    assert_archive_contained(
        make_zip(*(entry(name, flags=flag) for name, flag in zip(raw, flags, strict=False))),
        names[0],
    )
    headers = (pax(path=name) if at % 2 else long_name(name) for at, name in enumerate(raw))
    assert_archive_contained(b"".join(header + member("x") for header in headers) + END, names[0])
    short = b"".join(member(name[:100], prefix=name[100:255]) for name in raw)
    assert_archive_contained(short + END, names[0])
    files = open_files([(name, PIXELS) for name in names])
    assert_contained(lambda: import_files(files, names[0], len(names), SMALL))


@pytest.mark.fuzz
@quick
@given(
    st.sampled_from([b"", b"PK\3\4", b"PK\5\6", b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0"]),
    st.binary(max_size=1500),
)
def test_any_bytes_are_refused_in_words(magic, content):
    assert_archive_contained(magic + content)


@pytest.mark.fuzz
@settings(quick, max_examples=200)
@given(
    st.sampled_from(sorted(ORDINARY)),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=4),
    st.booleans(),
)
def test_any_damage_is_refused_or_harmless(suffix, changes, at_the_edges):
    """Change bytes anywhere, or only in headers and directories."""
    archive = bytearray(ORDINARY[suffix])
    for position, value in changes:
        if at_the_edges:
            position = position % 600 if position % 2 else len(archive) - 1 - position % 600
        archive[position % len(archive)] ^= value
    assert_archive_contained(archive)


@pytest.mark.fuzz
@quick
@given(st.data())
def test_any_damage_inside_a_compressed_tar_is_refused_or_harmless(data):
    first, second = pax(path=b"cat/1.jpg", mtime=b"1.5"), long_name(b"dog/" + b"2" * 120)
    archive = bytearray(first + member("x") + second + member("y") + END)
    for _ in range(data.draw(st.integers(1, 5))):
        start = data.draw(st.sampled_from([0, 512, 1024, 4608, 5120, 5632]))
        archive[start + data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
        header = archive[start : start + 148] + b" " * 8 + archive[start + 156 : start + 512]
        if data.draw(st.booleans()):
            archive[start + 148 : start + 156] = b"%06o\0 " % sum(header)
    assert_archive_contained(gzip.compress(archive, 1), "a.tgz")


@pytest.mark.fuzz
@pytest.mark.parametrize("suffix", ORDINARY)
def test_every_single_byte_of_a_small_archive_may_be_wrong(suffix):
    archive = ORDINARY[suffix]
    for position in range(0, len(archive), 1 + len(archive) // 80):
        damaged = bytearray(archive)
        damaged[position] ^= 0xFF
        assert_archive_contained(damaged)
