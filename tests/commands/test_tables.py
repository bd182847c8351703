"""Tables of the command line in a terminal of 80 columns, and piped: names are never cut."""

import io
import os
import pty
import re

import pytest

from finetune_core.commands.advise import print_advice
from finetune_core.commands.terminal import out, print_table
from finetune_core.data.public import PUBLIC_SETS
from finetune_core.evaluation.advice.advise import Advice
from finetune_core.evaluation.advice.probes import NetworkProbes
from finetune_core.evaluation.advice.ranking import Candidate
from finetune_core.models.catalogue import find_backbones
from finetune_core.training.strategies.catalogue import STRATEGIES
from tests.command_line import thaw
from tests.factories import shared_images, tiny_config, trained_run

LONG = "a_class_whose_name_takes_half_of_the_width"


@pytest.fixture(params=["terminal", "piped"])
def capture(request, monkeypatch):
    """Return the printed text as a terminal of 80 columns or a pipe gets it."""
    file = io.StringIO()
    monkeypatch.setattr(out, "_file", file)
    monkeypatch.setattr(out, "_width", 80)
    monkeypatch.setattr(out, "_force_terminal", request.param == "terminal")

    def text(widest=80):
        plain = re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())
        if request.param == "terminal":
            table = [line.rstrip() for line in plain.splitlines() if "  " in line.strip()]
            assert max(map(len, table), default=0) <= widest
        return plain

    text.terminal = request.param == "terminal"
    return text


def test_columns_that_do_not_fit_are_left_out_from_the_right_and_named(capture):
    rows = [["a" * 56, "12.5 %", "10.0 to 15.0 %", "an hour"], ["b", "1", "2", "3"]]
    print_table(["Strategy", "Accuracy", "95 % interval", "Time"], rows)
    text = capture()
    assert f" {'a' * 56}  12.5 %" in text
    if capture.terminal:
        assert "15.0 %" not in text
        assert "Not shown, for lack of room: 95 % interval, Time." in text
    else:
        assert "10.0 to 15.0 %  an hour" in text
        assert "Not shown" not in text


def test_headers_wrap_before_a_column_is_left_out(capture):
    columns = ["Name", *["Ensemble of the seeds"] * 5]
    print_table(columns, [["a" * 18, *["1"] * 5]])
    assert "Not shown" not in capture()


def test_a_name_that_is_wider_than_the_terminal_stays_whole(capture):
    name = "hf-hub:" + "x" * 100
    print_table(["Name", "Ready"], [[name, "yes"]])
    assert name in capture(widest=108)


def test_a_table_without_rows_has_its_header(capture):
    print_table(["Name", "Value"], [])
    assert "Name" in capture()


def test_public_sets_with_their_licences(capture):
    assert thaw("fetch").returncode == 0
    words = capture().split()
    assert PUBLIC_SETS.keys() <= set(words)
    for one in PUBLIC_SETS.values():
        assert set(one.licence.split()) <= set(words)


def test_networks(capture):
    assert thaw("backbones", "vit_base_patch1").returncode == 0
    text = capture()
    names = find_backbones("vit_base_patch1")
    assert any(len(name) > 45 for name in names)
    assert all(f" {name} " in text for name in names)


def test_advice(capture):
    name = "timm/vit_giant_patch14_reg4_dinov2.lvd142m"
    one = Candidate(name, "blocks.10", 32, 0.5, 0.4, 0.6, 60.0, 100, 100, 0.0, 1.0, like_best=True)
    probes = NetworkProbes(name, 32, None, None, None, ("blocks.10",), None, (60.0,), {})
    print_advice(Advice(100, 5, 30.0, (one,), (probes,), (), ()))
    lines = capture().splitlines()
    assert sum(name in line for line in lines) == 2
    assert any(re.search(rf"{re.escape(name)} +blocks\.10 +50\.0 %", line) for line in lines)


@pytest.mark.train
def test_inspection_comparison_and_evaluation(capture):
    data = shared_images(**{LONG: 14, "red": 14})
    strategies = ("linear_probe", "discriminative")
    runs = [trained_run(tiny_config(data, strategy=one)).run_dir for one in strategies]
    for arguments in (["inspect", data], ["compare", *runs], ["evaluate", runs[1]]):
        assert thaw(*arguments).returncode == 0
    text = capture()
    assert len(re.findall(rf"^ {LONG} ", text, re.MULTILINE)) == 2
    for name in strategies:
        title = re.escape(STRATEGIES[name].title)
        assert re.search(rf"^ {title}( ★)? +\d", text, re.MULTILINE), text
    assert "Test accuracy" in text


@pytest.mark.parametrize("piped", [True, False])
def test_a_real_terminal_of_80_columns_and_a_real_pipe_are_told_apart(monkeypatch, piped):
    far_end, near_end = os.pipe() if piped else pty.openpty()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    with open(near_end, "w") as file, open(far_end, "rb", buffering=0) as read:
        monkeypatch.setattr(out, "_file", file)
        print_table(["Name", "Last column"], [["x" * 90, "yes"]])
        file.flush()
        text = read.read(4096).decode()
    assert "x" * 90 in text
    assert ("Last column" in text.splitlines()[0]) == piped
