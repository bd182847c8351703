"""Names, files and outputs that nobody would choose.

The command line names the problem, ends with the right status, and never waits. Damaged run
directories are tested in ``test_damaged_folders.py``, archives and images in ``tests/data``.
"""

import errno
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from finetune_core.__main__ import _run
from finetune_core.standard_streams import with_safe_streams
from tests.command_line import thaw, thaw_json, tiny_options
from tests.deadline import in_time
from tests.factories import NASTY, shared_images, tiny_config, trained_run

ROOT = Path(__file__).resolve().parent.parent
POSIX = pytest.mark.skipif(os.name != "posix", reason="FIFOs, streams and names of POSIX")
FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")


@pytest.fixture(scope="module")
def trained(home_of_shared_fixtures):
    """Return (data, run directory) of one run that the tests of this file share."""
    data = shared_images(**{"red": 14, NASTY: 14})
    return data, trained_run(tiny_config(data, strategy="feature_extraction")).run_dir


@pytest.fixture(autouse=True)
def deadline(request):
    with in_time(request.node.name):
        yield


@pytest.mark.train
@POSIX
def test_a_fifo_is_skipped_among_images_and_refused_for_a_manifest(trained, tmp_path):
    data, run_dir = trained
    os.mkfifo(tmp_path / "fifo.png")
    done = thaw("predict", run_dir, tmp_path / "fifo.png", data / "red" / "000.png", "--json")
    assert (done.returncode, done.stdout.count('"probabilities"')) == (2, 1)
    assert "FIFO" in done.stderr
    os.mkfifo(tmp_path / "fifo.csv")
    (tmp_path / "link.csv").symlink_to("fifo.csv")
    for command, name in (("inspect", "fifo.csv"), ("train", "link.csv")):
        done = thaw(command, tmp_path / name)
        assert done.returncode == 2
        assert "is a FIFO, no regular file" in done.words
        assert "no folder" not in done.stderr


@pytest.mark.journey
def test_a_class_that_means_something_to_html_and_csv_is_data_everywhere(trained, tmp_path):
    data, run_dir = trained
    assert NASTY in thaw_json("inspect", data)["counts"]
    assert NASTY in thaw("inspect", data).stdout
    assert NASTY in thaw("evaluate", run_dir).stdout
    image = data / NASTY / "000.png"
    assert NASTY in thaw_json("predict", run_dir, image)["predictions"][0]["probabilities"]
    assert thaw("predict", run_dir, image, "--csv", tmp_path / "table.csv").returncode == 0
    header, row = (tmp_path / "table.csv").read_text().splitlines()
    assert '"p(<b>x$1$""[a](b))"' in header
    assert str(image).replace('"', '""') in row
    assert thaw("compare", run_dir, "--report", tmp_path / "report.html").returncode == 0
    assert "<b>x" not in (tmp_path / "report.html").read_text()


def call(monkeypatch, arguments, folder, encoding="utf-8", **streams):
    """Call the command line with other standard streams, and return (status, stdout, stderr).

    Args:
        streams: names in ``sys`` -> a path or a descriptor, or None for a closed stream. Otherwise
            stdout and stderr go to files in ``folder``.
    """
    files = {name: folder / name for name in ("stdout", "stderr")}
    for name, target in (files | streams).items():
        stream = None if target is None else open(target, "w", encoding=encoding)  # noqa: SIM115
        monkeypatch.setattr(sys, name, stream)
        monkeypatch.setattr(sys, f"__{name}__", stream)
    monkeypatch.setattr(sys, "argv", ["thaw", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        with_safe_streams(lambda: _run("thaw"))
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.close()
    read = [file.read_text(encoding) if file.exists() else "" for file in files.values()]
    return ended.value.code or 0, *read


@FULL
@pytest.mark.parametrize("command", ["fetch --json", "backbones vit", "--help"])
def test_results_that_have_no_room_are_an_error_in_one_line(monkeypatch, tmp_path, command):
    """Print results smaller than a buffer, larger than a buffer, and not printed by Thaw."""
    status, _, said = call(monkeypatch, command.split(), tmp_path, stdout="/dev/full")
    assert (status, said.count("\n")) == (1, 1)
    assert os.strerror(errno.ENOSPC) in said


@POSIX
@pytest.mark.parametrize("command", ["fetch", "fetch --json"])
def test_results_for_a_closed_stdout_are_an_error_in_one_line(monkeypatch, tmp_path, command):
    status, _, said = call(monkeypatch, command.split(), tmp_path, stdout=None)
    assert (status, said.count("\n")) == (1, 1)
    assert "closed" in said


@pytest.mark.train
@POSIX
def test_a_reader_that_stops_early_gets_no_error(monkeypatch, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    assert call(monkeypatch, ["backbones", "vit"], tmp_path, stdout=writer) == (1, "", "")


@FULL
@pytest.mark.parametrize("streams", [{"stderr": "/dev/full"}, {"stderr": None, "stdin": None}])
def test_progress_that_cannot_be_written_changes_neither_result_nor_status(
    trained, monkeypatch, tmp_path, streams
):
    for arguments, expected in ((["inspect", trained[0]], 0), (["evaluate", "/nope"], 2)):
        status, printed, _ = call(monkeypatch, arguments, tmp_path, **streams)
        assert status == expected
        assert ("28 images" in printed) == (expected == 0)


def test_a_name_that_no_encoding_holds_is_shown_escaped(image_folder, monkeypatch, tmp_path):
    data = image_folder(tmp_path / "images", {"grün": 12, "red": 12})
    status, printed, _ = call(monkeypatch, ["inspect", data], tmp_path, encoding="ascii")
    assert (status, r"gr\xfcn" in printed) == (0, True)


@pytest.mark.processes
@FULL
def test_a_program_of_its_own_has_the_same_streams_and_status():
    for line, status, said in (
        ("fetch --json > /dev/full", 1, os.strerror(errno.ENOSPC)),
        ("fetch <&- >&-", 1, "closed"),
        ("fetch imagenet", 2, "no public set 'imagenet'"),
    ):
        command = f'"$0" -m finetune_core {line}'
        done = subprocess.run(
            ["sh", "-c", command, sys.executable], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == status
        assert said in done.stderr
        assert "Traceback" not in done.stderr


NO_STREAMS = """
import os, sys
from finetune_core.standard_streams import with_safe_streams

def command():
    sys.stderr.write("progress")
    opened = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
    os.write(1, b"what a library prints") if opened == 1 else None
    os.write(opened, str(opened).encode())

with_safe_streams(command)
"""


@POSIX
def test_no_file_becomes_the_standard_output_that_is_closed(tmp_path):
    program = [sys.executable, "-c", NO_STREAMS, tmp_path / "file"]
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *program], cwd=ROOT)
    assert done.returncode == 0
    assert int((tmp_path / "file").read_text()) > 2


@POSIX
def test_what_commands_a_terminal_is_shown_and_not_sent(image_folder, tmp_path):
    commands = ["red\x1b[31m", "gr\x1b]0;title\x07een", "\u202eeulb", "c1\x9b2J", "back\b", "[/b]"]
    data = image_folder(tmp_path / "images", dict.fromkeys(commands, 3))
    (data / commands[0] / "not\x1b[2Jread.png").write_bytes(b"")
    done = thaw("inspect", data)
    assert done.returncode == 0
    assert not set("\x1b\x07\u202e\x9b\b") & set(done.stdout + done.stderr)
    assert r"red\x1b[31m" in done.stdout


@pytest.mark.train
def test_a_home_that_cannot_be_written_costs_only_what_is_kept_there(
    trained, tmp_path, monkeypatch
):
    data, run_dir = trained
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("THAW_HOME", str(tmp_path / "file"))
    train = ["train", data, *tiny_options(strategy="feature_extraction")]
    assert thaw("inspect", data).returncode == 0
    assert thaw("predict", run_dir, data / "red" / "000.png").returncode == 0
    assert thaw(*train, "--runs-dir", tmp_path / "runs").returncode == 0
    refused = thaw(*train)
    assert (refused.returncode, str(tmp_path / "file") in refused.stderr) == (2, True)


@pytest.mark.parametrize("name", ["~nobody-of-that-name", "~nobody-of-that-name/thaw", "/x" * 5000])
def test_a_home_that_cannot_be_is_an_error_in_words(trained, monkeypatch, name):
    monkeypatch.setenv("THAW_HOME", name)
    done = thaw("inspect", trained[0])
    assert (done.returncode, "THAW_HOME" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    "name", ["x" * 100_000, "/a" * 3000, "~nobody-of-that-name/a.png", "s\udcff.png", "nul\0"]
)
def test_names_that_cannot_be_are_refused_in_a_few_words(trained, name):
    data, run_dir = trained
    if "\0" not in name:  # for images, the others are named
        done = thaw("predict", run_dir, name, data / "red" / "000.png", "--json")
        assert (done.returncode, done.stdout.count('"problem"')) == (2, 1)
        assert 10 < len(done.stderr) < 5000
    for command in (
        ("inspect", name),
        ("train", data, "--weights", name),
        ("train", data, "--config", name),
        ("evaluate", name),
        ("evaluate", run_dir, "--split", name),
        ("export", run_dir, "--format", name),
        ("fetch", name),
    ):
        done = thaw(*command)
        assert (done.returncode, 10 < len(done.stderr) < 9000) == (2, True), command[0]
