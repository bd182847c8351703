"""Machines and devices that runs train on, and their free capacity."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import streamlit as st

from finetune_core.formatting import percent, things
from finetune_core.runs.executors import Machine
from finetune_core.runs.log import trained_on
from finetune_core.runs.store import Run
from pages.shared.account import sign_in_asked
from pages.shared.runs.backend import worker
from pages.shared.runs.labels import run_title

_HERE = "this machine"


def machines_in_use(runs: Sequence[Run]) -> None:
    """Draw a table of the training runs by machine, each with its share; nothing if none trains."""
    training = [run for run in runs if run.status == "running"]
    if not training:
        return
    st.header("Training now", anchor=False)
    table = pd.DataFrame(_rows(training, _by_host(worker().executor.cluster())))
    known = [name for name in table if table[name].any()]
    st.dataframe(
        table[known],
        hide_index=True,
        alt=f"Table of {things(len(training), 'run')} that train, and what is free beside them",
    )


def _rows(training: Sequence[Run], machines: dict[str, Machine]) -> list[dict[str, str]]:
    by_host: dict[str, list[Run]] = defaultdict(list)
    for run in training:
        by_host[_host(run)].append(run)
    rows = []
    for host in sorted({*by_host, *machines}, key=lambda host: (host == _HERE, host)):
        machine = machines.get(host)
        rows += [_row(run, host, machine) for run in by_host[host]]
        if machine and (left := _left(machine, by_host[host])):
            rows.append(_columns(host, "", left, "free", "", ""))
    return rows


def _by_host(machines: Sequence[Machine]) -> dict[str, Machine]:
    """Merge machines by host. A machine on which Ray has been started twice counts as one."""
    found: dict[str, Machine] = {}
    for one in machines:
        before = found.get(one.host, Machine(one.host, 0, 0))
        found[one.host] = replace(
            before, gpus=before.gpus + one.gpus, cores=before.cores + one.cores
        )
    return found


def _host(run: Run) -> str:
    return run.history.places[-1]["host"] if run.history.places else _HERE


def _row(run: Run, host: str, machine: Machine | None) -> dict[str, str]:
    device = trained_on(run.history.started) if run.history.started else ""
    return _columns(
        host,
        device,
        _share(run, machine),
        run_title(run),
        run.owner,
        percent(run.history.fraction, 0),
    )


def _columns(host: str, device: str, share: str, run: str, owner: str, done: str) -> dict[str, str]:
    row = {"Machine": host, "Device": device, "Share": share, "Run": run}
    return row | ({"Owner": owner} if sign_in_asked() else {}) | {"Done": done}


def _share(run: Run, machine: Machine | None) -> str:
    """Return the part of its machine that a run has to itself; empty if that is not known."""
    place = run.history.places[-1] if run.history.places else {"gpus": 0, "cores": 0}
    return _of(
        place["gpus"],
        machine.gpus if machine else 0,
        place["cores"],
        machine.cores if machine else 0,
    )


def _left(machine: Machine, runs: Sequence[Run]) -> str:
    """Return the part of a machine that no run has.

    Returns:
        An empty string if nothing is left, or the share of a run there is not known.
    """
    places = [run.history.places[-1] for run in runs]
    if any(place["cores"] == 0 for place in places):
        return ""
    gpus, cores = (
        getattr(machine, name) - sum(place[name] for place in places) for name in ("gpus", "cores")
    )
    return _of(max(0, gpus), machine.gpus, max(0, cores), machine.cores)


def _of(gpus: int, all_gpus: int, cores: int, all_cores: int) -> str:
    parts = [_part(gpus, all_gpus, "GPU"), _part(cores, all_cores, "core")]
    return ", ".join(filter(None, parts))


def _part(count: int, of: int, what: str) -> str:
    if not count:
        return ""
    return f"{count} of {things(of, what)}" if of else things(count, what)
