"""A run with any damage is named as damaged, and other runs are not affected."""

import json
import os
import socket
from dataclasses import replace

import pytest
from pydantic import TypeAdapter

from finetune_core.config import make_config
from finetune_core.errors import ConfigError, RunError
from finetune_core.runs.about import read_about
from finetune_core.runs.history import History
from finetune_core.runs.locks import hold_lock, is_locked
from finetune_core.runs.record import reopen_run
from finetune_core.runs.stop_request import request_stop
from finetune_core.runs.store import RunStore, read_run, summarize_run
from finetune_core.training import events
from tests.deadline import in_time

CONFIG = {"data": "/pets", "backbone": "resnet18", "strategy": "full", "epochs": 2}
DEEP = "[" * 100_000
ENDED = events.EpochEnded(1, 1.0, 0.5, 1.0, 0.5, 1.0, 1.0, 2.0, 7)


@pytest.fixture
def runs(tmp_path, started, step, lines):
    """Make the directory of a run of one epoch, from a name and its events or bytes."""

    def make(name, content=None):
        run_dir = tmp_path / "runs" / name
        run_dir.mkdir(parents=True)
        (run_dir / "config.json").write_text(make_config(CONFIG).model_dump_json())
        (run_dir / "about.json").write_text(
            json.dumps({"name": "baseline", "note": "", "owner": "ann"})
        )
        result = (
            lines(started(), step(1, 1), ENDED, events.RunStopped(1, 1, 3.0))
            if content is None
            else content
        )
        (run_dir / "events.jsonl").write_bytes(result)
        return run_dir

    return make


def replace_by(kind):
    def damage(path):
        path.unlink(missing_ok=True)
        match kind:
            case "folder":
                path.mkdir()
            case "fifo":
                os.mkfifo(path)
            case "loop":
                path.symlink_to(path)
            case "link":
                outside = path.parent.parent.parent / "outside"
                outside.write_bytes(b"{}")
                path.symlink_to(outside)
            case "device":
                path.symlink_to("/dev/zero")
            case "socket":
                folder = os.getcwd()
                os.chdir(path.parent)  # a socket's whole path may have a hundred letters
                socket.socket(socket.AF_UNIX).bind(path.name)
                os.chdir(folder)

    return damage


def replace_content(content):
    return lambda path: path.write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )


def config(**changes):
    return replace_content(json.dumps(CONFIG | changes))


CONFIGS = {
    "missing": lambda path: path.unlink(),
    "empty": replace_content(""),
    "no JSON": replace_content(b"\xff\xfe{"),
    "a list": replace_content("[1]"),
    "deep": replace_content('{"data": ' + DEEP),
    "deep and closed": config(epochs=json.loads("[" * 900 + "]" * 900)),
    "larger than can be": lambda path: os.truncate(path, 2**40),
    "not a number": config(learning_rate=float("nan")),
    "huge": config(epochs=10**300),
    "another kind": config(epochs="many"),
    "a class for a field": config(backbone={"a": 1}),
    "a long path": config(data="x" * 100_000),
    "an unknown field": config(**{"y" * 100_000: 1}),
    "an unknown backbone": config(backbone="resnet1"),
    "of another run": config(strategy="feature_extraction"),
    "a stage that is not there": config(strategy="custom", cut="layer9"),
    **{kind: replace_by(kind) for kind in ("folder", "fifo", "loop", "link", "device", "socket")},
}


@pytest.mark.parametrize("damage", CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_cannot_be_read_damages_its_run_alone(runs, damage):
    good, bad = runs("good"), runs("bad")
    damage(bad / "config.json")
    store = RunStore(good.parent)
    before = summarize_run(store.get_run("good"))
    found, [damaged] = store.list_all()
    assert [summarize_run(run) for run in found] == [before]
    assert damaged.run_id == "bad"
    assert 10 < len(damaged.reason) < 500
    with pytest.raises(RunError, match="damaged"):
        store.get_run("bad")
    with pytest.raises((ConfigError, RunError)):
        reopen_run(bad)


def line(event, **changes):
    return json.dumps(event.to_json() | {"at": 1.0} | changes).encode() + b"\n"


def change_first_line(**changes):
    """Return a function that changes the RunStarted line."""

    def damage(path):
        first, _, rest = path.read_bytes().partition(b"\n")
        path.write_bytes(json.dumps(json.loads(first) | changes).encode() + b"\n" + rest)

    return damage


EVENTS = {
    "without its beginning": lambda path: path.write_bytes(path.read_bytes().partition(b"\n")[2]),
    "no class": change_first_line(classes=[]),
    "classes of another kind": change_first_line(classes="cat"),
    "a class twice": change_first_line(classes=["cat", "cat"]),
    "classes that are numbers": change_first_line(classes=[1, 2]),
    "no stages": change_first_line(stages=[]),
    "no steps": change_first_line(steps_per_epoch=0),
    "more epochs than can be": change_first_line(epochs=10**12),
    "epochs of another kind": change_first_line(epochs=2.5),
    "counts without a split": change_first_line(counts={"train": 3}),
    "no training images": change_first_line(counts={"train": 0, "val": 3}),
    "a cache somewhere": change_first_line(cache={"where": "cloud"}),
    "no number": change_first_line(decode_seconds=float("nan")),
    "a time that never was": change_first_line(at=1e300),
    "another backbone": change_first_line(backbone="resnet34"),
    "deep": lambda path: path.write_bytes(
        b'{"event": "RunStarted", "stages": '
        + DEEP.encode()
        + b"\n"
        + path.read_bytes().partition(b"\n")[2]
    ),
    "larger than can be": lambda path: os.truncate(path, 2**40),
    "thousands of lines of nothing": replace_content(b"\n" * 20_000),
    **{kind: replace_by(kind) for kind in ("folder", "fifo", "loop", "link", "device", "socket")},
}


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(damage, id=name, marks=[pytest.mark.fuzz] * (name == "larger than can be"))
        for name, damage in EVENTS.items()
    ],
)
def test_events_that_cannot_be_read_damage_their_run_alone(runs, damage):
    good, bad = runs("good"), runs("bad")
    damage(bad / "events.jsonl")
    store = RunStore(good.parent)
    for _ in range(2):
        found, [damaged] = store.list_all()
        assert [run.run_id for run in found] == ["good"]
        assert found[0].notices == ()
        assert damaged.run_id == "bad"
        assert "events.jsonl" in damaged.reason


BAD_LINES = {
    "no JSON": b"{broken\n",
    "empty": b"\n",
    "no event": b"[1]\n",
    "an unknown event": b'{"event": "Party"}\n',
    "deep": b'{"event": ' + DEEP.encode() + b"\n",
    "no UTF-8": b'{"event": "RunFailed", "message": "\xff", "traceback": ""}\n',
    "an epoch beyond the last": line(events.CheckpointSaved("best", 1)).replace(
        b'"epoch": 1', b'"epoch": -1'
    ),
    "another kind": line(ENDED, epoch=2, val_accuracy="0.9"),
    "no number": line(ENDED, epoch=2, val_loss=float("nan")),
    "infinite": line(ENDED, epoch=2, seconds=float("inf")),
    "more than all": line(ENDED, epoch=2, val_accuracy=1.5),
    "reported twice": line(ENDED),
    "an epoch that cannot be": line(ENDED, epoch=3),
    "a stage that is not there": line(
        ENDED, epoch=2, stages={"layer9": {"learning_rate": 1, "gradient_norm": 1, "update": 1}}
    ),
    "an unknown phase": line(events.Progress("index", 1, 2), phase="party"),
    "more done than there is": line(events.Progress("index", 3, 2)),
    "a fit where there are epochs": line(
        events.HeadFitted(5, 3, "C", 0.1, [], 5, 0, 0.1, 1.0, 0.2)
    ),
    "an initial head without a feature": line(events.HeadInitialized(5, 0, 0.1, 0.1, 1.0, 0.2)),
    "finished without a best epoch": line(events.RunFinished(1, 0, 0.5, 1.0, None, 3.0)),
    "longer than can be": b" " * (events.LONGEST_LINE + 10) + b"\n",
}


@pytest.mark.parametrize("bad", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_left_out_and_counted_and_what_follows_is_read(
    runs, started, step, lines, bad
):
    later = replace(ENDED, epoch=2, seconds=4.0)
    run_dir = runs(
        "one",
        lines(started(), step(1, 1), ENDED)
        + bad
        + lines(step(2, 1), later, events.RunStopped(2, 1, 5.0)),
    )
    run = read_run(run_dir)
    assert [row["epoch"] for row in run.history.epochs] == [1, 2]
    assert (run.status, run.history.skipped_lines) == ("stopped", 1)
    [notice] = run.notices
    assert notice.startswith("1 line of events.jsonl ")


def test_what_an_older_run_lacks_is_filled_in(runs, started, lines):
    old = [
        json.loads(one)
        for one in lines(
            started(), ENDED, events.RunFinished(1, 1, 0.5, 1.0, None, 3.0, 9)
        ).splitlines()
    ]
    for name in ("cache", "decode_seconds", "decoded", "forecast"):
        del old[0][name]
    for name in ("memory_bytes", "device_bytes", "train_scores", "val_scores", "stages"):
        del old[1][name]
    for name in ("evaluation_seconds", "evaluation_precision"):
        del old[2][name]
    run = read_run(runs("old", b"".join(json.dumps(row).encode() + b"\n" for row in old)))
    assert (run.status, run.notices) == ("finished", ())
    # it was evaluated as it trained
    assert summarize_run(run)["evaluation_precision"] == old[0]["precision"]
    assert run.history.sum_seconds_by_part()["trunk"] == 0
    assert (run.history.epochs[0]["memory_bytes"], run.history.epochs[0]["device_bytes"]) == (
        0,
        None,
    )


def test_events_that_were_replaced_or_cut_short_are_read_anew(runs, started, step, lines):
    run_dir = runs("one", lines(started(), step(1, 1), step(1, 2)))
    history = History(run_dir).refresh()
    os.truncate(run_dir / "events.jsonl", len(lines(started(), step(1, 1))))
    assert len(history.refresh().steps) == 1
    (run_dir / "events.jsonl").unlink()
    assert (len(history.refresh().steps), history.started) == (0, None)
    (run_dir / "events.jsonl").mkdir()
    assert history.refresh().problem == "events.jsonl is a folder"
    (run_dir / "events.jsonl").rmdir()
    (run_dir / "events.jsonl").write_bytes(lines(started()))
    assert (history.refresh().problem, history.started["epochs"]) == ("", 2)


ABOUTS = {
    "no JSON": replace_content("["),
    "another kind": replace_content('{"name": 5}'),
    "long": replace_content(json.dumps({"name": "x" * 10_000})),
    "deep": replace_content('{"name": ' + DEEP),
    **{kind: replace_by(kind) for kind in ("folder", "fifo", "loop", "link", "device")},
}


@pytest.mark.parametrize("damage", ABOUTS.values(), ids=ABOUTS)
def test_a_damaged_name_is_noticed_and_costs_no_more_than_the_name(runs, damage):
    run_dir = runs("one")
    damage(run_dir / "about.json")
    with pytest.raises(RunError, match=r"about\.json"):
        read_about(run_dir)
    run = read_run(run_dir)
    assert (run.status, run.name, run.owner, len(run.history.epochs)) == ("stopped", "", "", 1)
    assert "about.json" in run.notices[0]
    with pytest.raises(RunError, match="belongs to nobody"):
        RunStore(run_dir.parent).delete("one", "ann")


def test_a_run_folder_that_is_a_link_is_refused_and_only_the_link_goes_to_the_trash(runs, tmp_path):
    run_dir = runs("one")
    elsewhere = tmp_path / "elsewhere"
    run_dir.rename(elsewhere)
    run_dir.symlink_to(elsewhere)
    store = RunStore(run_dir.parent)
    assert [(one.run_id, "a link" in one.reason) for one in store.list_damaged()] == [("one", True)]
    for read in (read_run, reopen_run):
        with pytest.raises(RunError):
            read(run_dir)
    store.delete("one")
    assert (store.list_damaged(), (elsewhere / "events.jsonl").is_file()) == ([], True)


@pytest.mark.parametrize("name", ["config.json", "events.jsonl"])
def test_a_damaged_run_goes_to_the_trash(runs, name):
    run_dir = runs("one")
    replace_by("fifo")(run_dir / name)
    store = RunStore(run_dir.parent)
    with pytest.raises(RunError, match="only its owner"):
        store.delete("one", "ben")
    assert store.delete("one", "ann").is_dir()
    assert store.list_all() == ([], [])


def test_asking_a_run_to_stop_writes_through_no_link(runs, tmp_path):
    run_dir, outside = runs("one"), tmp_path / "outside"
    outside.write_text("mine")
    (run_dir / "stop").symlink_to(outside)
    request_stop(run_dir)
    assert outside.read_text() == "mine"


@pytest.mark.parametrize("kind", ["folder", "fifo", "loop", "link", "device", "socket"])
def test_a_lock_that_is_no_file_is_neither_opened_nor_waited_for(runs, kind, monkeypatch):
    # its data are not there
    monkeypatch.setattr("finetune_core.runs.record.check_config", lambda *_, **_named: None)
    run_dir = runs("one")
    replace_by(kind)(run_dir / "lock")
    with in_time(kind):
        assert not is_locked(run_dir)
        assert RunStore(run_dir.parent).get_run("one").status == "stopped"
        for take in (lambda: reopen_run(run_dir), lambda: hold_lock(run_dir).__enter__()):
            with pytest.raises(RunError, match=f"lock is a.*{run_dir.name}"):
                take()


def test_other_things_among_the_runs_are_no_runs(runs, tmp_path):
    run_dir = runs("one")
    (run_dir.parent / "empty").mkdir()
    (run_dir.parent / "file").write_text("x")
    os.mkfifo(run_dir.parent / "fifo")
    (run_dir.parent / ".trash").symlink_to(tmp_path)
    assert RunStore(run_dir.parent).list_damaged() == []


def list_unbounded(schema):
    """Return every number, text, list and object that a JSON schema allows without a bound."""
    if isinstance(schema, list):
        return [found for one in schema for found in list_unbounded(one)]
    if not isinstance(schema, dict):
        return []
    wanted = {
        "integer": ["maximum", "minimum"],
        "number": ["maximum", "minimum"],
        "array": ["maxItems"],
        "string": ["maxLength"],
    }
    kind = schema.get("type")
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        wanted["object"] = ["maxProperties"]
    fixed = "const" in schema or "enum" in schema
    missing = (
        [schema]
        if isinstance(kind, str)
        and not fixed
        and any(key not in schema for key in wanted.get(kind, []))
        else []
    )
    return missing + [found for one in schema.values() for found in list_unbounded(one)]


@pytest.mark.parametrize("event", events.EVENTS)
def test_every_field_of_every_event_is_bounded(event):
    assert list_unbounded(TypeAdapter(event).json_schema()) == []


def test_looking_at_runs_again_opens_no_file_that_has_not_changed(runs, monkeypatch):
    for number in range(20):
        run_dir = runs(f"run-{number}")
    replace_by("fifo")(run_dir / "config.json")
    store = RunStore(run_dir.parent)
    before = store.list_all()
    opened, really = [], os.open
    monkeypatch.setattr("os.open", lambda path, *rest: opened.append(path) or really(path, *rest))
    assert store.list_all() == before
    assert opened == []
    with (run_dir.parent / "run-3" / "events.jsonl").open("ab") as file:
        file.write(b"{}\n")
    store.list_all()
    assert [os.path.basename(os.path.dirname(path)) for path in opened] == ["run-3"]
