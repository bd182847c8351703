"""Machines and devices that runs train on, and their free capacity."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import streamlit as st

from finetune_core.formatting import format_percent, pluralize
from finetune_core.runs.executors.protocol import Machine
from finetune_core.runs.log import name_devices
from finetune_core.runs.store import Run
from pages.shared.account import is_sign_in_required
from pages.shared.runs.backend import worker
from pages.shared.runs.labels import run_title

_HERE = "this machine"


def draw_machines(runs: Sequence[Run]) -> None:
    """Draw a table of the training runs by machine, each with its share; nothing if none trains."""
    training = [run for run in runs if run.status == "running"]
    if not training:
        return
    st.header("Training now", anchor=False)
    table = pd.DataFrame(_make_rows(training, _merge_by_host(worker().executor.list_machines())))
    columns = [name for name in table if table[name].any()]
    st.dataframe(
        table[columns],
        hide_index=True,
        alt=f"Table of {pluralize(len(training), 'run')} that train, and what is free beside them",
    )


def _make_rows(training: Sequence[Run], machines: dict[str, Machine]) -> list[dict[str, str]]:
    by_host: dict[str, list[Run]] = defaultdict(list)
    for run in training:
        by_host[_get_host(run)].append(run)
    rows = []
    for host in sorted({*by_host, *machines}, key=lambda host: (host == _HERE, host)):
        machine = machines.get(host)
        rows += [_make_run_row(run, host, machine) for run in by_host[host]]
        if machine and (rest := _describe_rest(machine, by_host[host])):
            rows.append(_make_row(host, "", rest, "free", "", ""))
    return rows


def _merge_by_host(machines: Sequence[Machine]) -> dict[str, Machine]:
    """Merge machines by host. A machine on which Ray has been started twice counts as one."""
    found: dict[str, Machine] = {}
    for one in machines:
        previous = found.get(one.host, Machine(one.host, 0, 0))
        found[one.host] = replace(
            previous, gpus=previous.gpus + one.gpus, cores=previous.cores + one.cores
        )
    return found


def _get_host(run: Run) -> str:
    return run.history.places[-1]["host"] if run.history.places else _HERE


def _make_run_row(run: Run, host: str, machine: Machine | None) -> dict[str, str]:
    device = name_devices(run.history.started) if run.history.started else ""
    return _make_row(
        host,
        device,
        _describe_share(run, machine),
        run_title(run),
        run.owner,
        format_percent(run.history.fraction, 0),
    )


def _make_row(
    host: str, device: str, share: str, run: str, owner: str, done: str
) -> dict[str, str]:
    row = {"Machine": host, "Device": device, "Share": share, "Run": run}
    return row | ({"Owner": owner} if is_sign_in_required() else {}) | {"Done": done}


def _describe_share(run: Run, machine: Machine | None) -> str:
    """Return the part of its machine that a run has to itself; empty if that is not known."""
    share = run.history.places[-1] if run.history.places else {"gpus": 0, "cores": 0}
    return _format_share(
        share["gpus"],
        machine.gpus if machine else 0,
        share["cores"],
        machine.cores if machine else 0,
    )


def _describe_rest(machine: Machine, runs: Sequence[Run]) -> str:
    """Return the part of a machine that no run has.

    Returns:
        An empty string if nothing is left, or the share of a run there is not known.
    """
    shares = [run.history.places[-1] for run in runs]
    if any(share["cores"] == 0 for share in shares):
        return ""
    gpus, cores = (
        getattr(machine, name) - sum(share[name] for share in shares) for name in ("gpus", "cores")
    )
    return _format_share(max(0, gpus), machine.gpus, max(0, cores), machine.cores)


def _format_share(gpus: int, all_gpus: int, cores: int, all_cores: int) -> str:
    parts = [_format_part(gpus, all_gpus, "GPU"), _format_part(cores, all_cores, "core")]
    return ", ".join(filter(None, parts))


def _format_part(count: int, total: int, unit: str) -> str:
    if not count:
        return ""
    return f"{count} of {pluralize(total, unit)}" if total else pluralize(count, unit)
