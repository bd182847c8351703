"""Names, files and outputs that nobody would choose: the command line says what is wrong, ends with the right status, and never waits."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from finetune_core.__main__ import app
from tests.deadline import in_time

ROOT = Path(__file__).resolve().parent.parent


def thaw(*arguments):
    """What the command line says, in time and cleanly."""
    with in_time(arguments[0]):
        done = CliRunner().invoke(app, [*map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture(scope="module")
def trained(image_folder_once, tmp_path_factory):
    """(data, folder of the run) of one small run that the tests of this file share."""
    base = tmp_path_factory.mktemp("hostile")
    data = image_folder_once(base / "images", {"red": 8, "blue": 8})
    settings = [
        "--epochs",
        1,
        "--image-size",
        32,
        "--batch-size",
        8,
        "--strategy",
        "feature_extraction",
        "--precision",
        "fp32",
    ]
    done = thaw("train", data, *settings, "--runs-dir", base / "runs", "--json")
    assert done.exit_code == 0, done.stderr
    return data, Path(json.loads(done.stdout)["run_dir"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs in folders here")
def test_a_fifo_among_images_is_skipped_and_the_rest_is_named(trained, tmp_path):
    data, run_dir = trained
    os.mkfifo(tmp_path / "fifo.png")
    done = thaw("predict", run_dir, tmp_path / "fifo.png", data / "red" / "000.png", "--json")
    result = json.loads(done.stdout)
    assert (done.exit_code, len(result["predictions"]), len(result["skipped"])) == (2, 1, 1)
    assert "FIFO" in done.stderr


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.parametrize("command", ["inspect", "train"])
@pytest.mark.parametrize("link", [False, True])
def test_a_fifo_for_a_manifest_is_said_to_be_one(tmp_path, command, link):
    os.mkfifo(tmp_path / "fifo.csv")
    (tmp_path / "link.csv").symlink_to("fifo.csv")
    done = thaw(command, tmp_path / ("link.csv" if link else "fifo.csv"))
    assert done.exit_code == 2
    assert "is a FIFO, no regular file" in " ".join(done.stderr.split())
    assert "no folder" not in done.stderr


def shell(line, **more):
    """A line of the shell in which $thaw is the command line, with its output where the line sends it."""
    environment = os.environ | {"thaw": f"{sys.executable} -m finetune_core"}
    return subprocess.run(
        ["sh", "-c", line],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        **more,
    )


@pytest.mark.processes
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
# less than a buffer, more, and not ours
@pytest.mark.parametrize("command", ["fetch --json", "backbones", "--help"])
def test_results_that_have_no_room_are_an_error_in_one_line(command):
    done = shell(f"$thaw {command} > /dev/full")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert os.strerror(errno.ENOSPC) in done.stderr


@pytest.mark.processes
@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell closes streams")
@pytest.mark.parametrize("command", ["fetch", "fetch --json"])
def test_results_for_a_closed_stdout_are_an_error_in_one_line(command):
    done = shell(f"$thaw {command} >&-")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "closed" in done.stderr


@pytest.mark.processes
@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell closes streams")
def test_a_reader_that_stops_early_gets_no_error():
    done = shell("{ $thaw backbones; echo $? >&2; } | true")
    assert done.stderr.strip() == "1"


@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell closes streams")
@pytest.mark.processes
@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full", "<&- 2>&-"])
def test_progress_that_cannot_be_written_changes_neither_result_nor_status(trained, where):
    data, _ = trained
    if where.endswith("full") and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    inspected = shell(f'$thaw inspect "$data" {where}'.replace("$data", str(data)))
    assert inspected.returncode == 0
    assert "16 images" in inspected.stdout
    assert shell(f"$thaw evaluate /nope {where}").returncode == 2


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


@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell closes streams")
def test_no_file_becomes_the_standard_output_that_is_closed(tmp_path):
    done = subprocess.run(
        [
            "sh",
            "-c",
            'exec "$@" <&- >&- 2>&-',
            "sh",
            sys.executable,
            "-c",
            NO_STREAMS,
            tmp_path / "file",
        ],
        cwd=ROOT,
    )
    assert done.returncode == 0
    assert int((tmp_path / "file").read_text()) > 2


@pytest.mark.processes
def test_a_name_that_no_encoding_holds_is_shown_escaped(image_folder, tmp_path):
    data = image_folder(tmp_path / "images", {"grün": 12, "red": 12})
    done = subprocess.run(
        [sys.executable, "-m", "finetune_core", "inspect", data],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=300,
    )
    assert (done.returncode, b"gr\\xfcn" in done.stdout) == (0, True)


def test_what_commands_a_terminal_is_shown_and_not_sent(image_folder, tmp_path):
    commands = ["red\x1b[31m", "gr\x1b]0;title\x07een", "\u202eeulb", "c1\x9b2J", "back\b", "[/b]"]
    if sys.platform == "win32":
        pytest.skip("no such names here")
    data = image_folder(tmp_path / "images", dict.fromkeys(commands, 3))
    (data / commands[0] / "not\x1b[2Jread.png").write_bytes(b"")
    done = thaw("inspect", data)
    assert done.exit_code == 0
    assert not set("\x1b\x07\u202e\x9b\b") & set(done.output)
    assert r"red\x1b[31m" in done.stdout


def test_a_home_that_cannot_be_written_costs_only_what_is_kept_there(
    trained, tmp_path, monkeypatch
):
    data, run_dir = trained
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("THAW_HOME", str(tmp_path / "file"))
    settings = [
        "--epochs",
        1,
        "--image-size",
        32,
        "--batch-size",
        8,
        "--strategy",
        "feature_extraction",
    ]
    assert thaw("inspect", data).exit_code == 0
    assert thaw("predict", run_dir, data / "red" / "000.png").exit_code == 0
    assert thaw("train", data, *settings, "--runs-dir", tmp_path / "runs").exit_code == 0
    refused = thaw("train", data, *settings)
    assert (refused.exit_code, str(tmp_path / "file") in refused.stderr) == (2, True)


@pytest.mark.parametrize("name", ["~nobody-of-that-name", "~nobody-of-that-name/thaw", "/x" * 5000])
def test_a_home_that_cannot_be_is_an_error_in_words(trained, monkeypatch, name):
    monkeypatch.setenv("THAW_HOME", name)
    done = thaw("inspect", trained[0])
    assert (done.exit_code, "THAW_HOME" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    "name", ["x" * 100_000, "/a" * 3000, "~nobody-of-that-name/a.png", "s\udcff.png"]
)
def test_an_image_whose_name_cannot_be_is_skipped_in_a_few_words(trained, name):
    done = thaw("predict", trained[1], name, trained[0] / "red" / "000.png", "--json")
    assert (done.exit_code, len(json.loads(done.stdout)["skipped"])) == (2, 1)
    assert 10 < len(done.stderr) < 5000


@pytest.mark.parametrize(
    "name", ["x" * 100_000, "/a" * 3000, "~nobody-of-that-name", "s\udcff", "nul\0"]
)
def test_names_that_cannot_be_are_refused_in_words(trained, name):
    data, run_dir = trained
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
        assert (done.exit_code, 10 < len(done.stderr) < 9000) == (2, True), command[0]
