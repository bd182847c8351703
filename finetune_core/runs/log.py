"""The log of a run as text, one line per event."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from finetune_core.formatting import (
    PHASE_TITLES,
    format_bytes,
    format_duration,
    format_number,
    format_percent,
    lower_first,
    pluralize,
)
from finetune_core.training.strategies.catalogue import STRATEGIES

Row = Mapping[str, Any]

_BACKENDS = {"cuda": "NCCL"}  # of torch.distributed; other devices use gloo


def format_log(notable: Sequence[Row]) -> list[str]:
    """Return the log of a run as lines, the first event first: the time of day, and the event.

    Args:
        notable: ``History.notable``.
    """
    lines: list[str] = []
    stages: Sequence[Row] = ()
    for row in notable:
        stages = row["stages"] if row["event"] == "RunStarted" else stages
        words = "Cancelled before it began." if _is_cancelled(row, stages) else describe_event(row)
        if row["event"] == "EpochEnded" and (
            thawing := [one["name"] for one in stages if one["thaw_epoch"] == row["epoch"] + 1]
        ):
            words += (
                f" From the next epoch on {', '.join(thawing)} "
                f"{'trains' if len(thawing) == 1 else 'train'}, too."
            )
        if words:
            lines.append(f"{datetime.fromtimestamp(row['at']):%H:%M:%S}  {words}")
    return lines


def _is_cancelled(row: Row, stages: Sequence[Row]) -> bool:
    """Return whether a run was stopped for good before it began.

    Args:
        row: an event.
        stages: the stages of the RunStarted row; empty before it.
    """
    return row["event"] == "RunStopped" and not stages and not row["paused"]


def describe_event(row: Row) -> str:
    """Describe an event; empty if there is nothing to say."""
    match row["event"]:
        case "Progress":
            return f"{PHASE_TITLES[row['phase']]}."
        case "RunStarted":
            return f"{describe_lineage(row)} {_describe_start(row)}".strip()
        case "RunPlaced":
            previous = row["moved_from"]
            return (
                f"Moved to {row['host']}: the process on {previous} that trained it is gone."
                if previous
                else f"On {row['host']}."
            )
        case "RunResumed":
            return f"Resuming after {pluralize(row['step'], 'step')} of epoch {row['epoch']}."
        case "ImagesSkipped":
            return (
                f"Left out, because unreadable: {pluralize(row['count'], 'image')}. "
                f"{'; '.join(row['examples'][:3])}"
            )
        case "ImagesLost":
            return (
                f"No longer readable, and left out: {pluralize(row['count'], 'image')} so far. "
                f"{'; '.join(row['examples'][:3])}"
            )
        case "MemoryShort":
            return (
                f"Memory ran short in step {row['step']} of epoch {row['epoch']}: "
                f"images now go through {row['micro_batch']} at a time. "
                "A step still learns from its whole batch."
            )
        case "EpochEnded":
            return (
                f"Epoch {row['epoch']} took "
                f"{format_duration(row['train_seconds'] + row['val_seconds'])}: training loss "
                f"{row['train_loss']:.3f}, training accuracy "
                f"{format_percent(row['train_accuracy'])}; validation loss {row['val_loss']:.3f}, "
                f"validation accuracy {format_percent(row['val_accuracy'])}. "
                f"{describe_overflow(row)}".rstrip()
            )
        case "HeadFitted":
            return describe_fit(row)
        case "HeadInitialized":
            return describe_initial_head(row)
        case "WeightsAveraged":
            return describe_average(row)
        case "CheckpointSaved":
            return (
                f"The best epoch so far: {row['epoch']}. It is kept."
                if row["name"] == "best" and row["epoch"]
                else ""
            )
        case "RunFinished":
            evaluated = (
                f" Validation accuracy {format_percent(row['val_accuracy'])}"
                if row.get("evaluation_precision")
                else ""
            )
            evaluated += f" in {row['evaluation_precision']}." if evaluated else ""
            tested = (
                f" Test accuracy {format_percent(row['test_accuracy'])}."
                if row["test_accuracy"] is not None
                else ""
            )
            frozen = (
                f" {format_number(row['frozen_tensors'])} frozen tensors compared: none has "
                "changed."
                if row["frozen_tensors"]
                else ""
            )
            kept = f"; epoch {row['best_epoch']} is kept" if row["best_epoch"] else ""
            return (
                "Finished after "
                f"{format_duration(row['seconds'])}{kept}.{evaluated}{tested}{frozen}"
            )
        case "RunStopped":
            return "Paused." if row["paused"] else "Stopped."
        case "RunFailed":
            return f"Failed: {row['message']}"
    return ""


def describe_overflow(row: Row) -> str:
    """Describe the steps that an epoch has skipped; empty without any.

    Args:
        row: an EpochEnded row.
    """
    skipped = row.get("skipped_steps", 0)
    return (
        f"{pluralize(skipped, 'step')} skipped, whose gradients overflowed in fp16."
        if skipped
        else ""
    )


def describe_initial_head(row: Row) -> str:
    """Describe the fit of an initial head.

    Args:
        row: a HeadInitialized row.
    """
    return (
        f"The initial head is a linear probe, fitted to {pluralize(row['features'], 'feature')} of "
        f"{pluralize(row['images'], 'training image')} in {format_duration(row['seconds'])}: C = "
        f"{row['c']:.2g}, loss {row['train_loss']:.3f}, accuracy "
        f"{format_percent(row['train_accuracy'])} on them."
    )


def describe_fit(row: Row) -> str:
    """Describe the fit of a head, and how its parameter was chosen.

    Args:
        row: a HeadFitted row.
    """
    words = (
        f"The classifier was fitted to {pluralize(row['features'], 'feature')} of "
        f"{pluralize(row['images'], 'training image')} in {format_duration(row['seconds'])}: "
        f"loss {row['train_loss']:.3f}, accuracy {format_percent(row['train_accuracy'])} on them."
    )
    if not row["chosen_on"]:
        return f"{words} {row['parameter']} = {row['chosen']:.2g}."
    if not row["folds"]:
        return (
            f"{words} Too few images to cross-validate: {row['parameter']} = {row['chosen']:.2g}."
        )
    best = next((one for one in row["candidates"] if one["value"] == row["chosen"]), None)
    scores = (
        f": loss {best['loss']:.3f}, accuracy {format_percent(best['accuracy'])} on held-out "
        "training images"
        if best
        else ""
    )
    return (
        f"{words} {row['parameter']} = {row['chosen']:.2g} was chosen among "
        f"{len(row['candidates'])} values by {row['folds']}-fold cross-validation within "
        f"{pluralize(row['chosen_on'], 'training image')}{scores}."
    )


def describe_average(row: Row) -> str:
    """Describe an average: its runs, and how they and the coefficient were chosen.

    Args:
        row: a WeightsAveraged row.
    """
    parents = "; ".join(f"run {_describe_ancestor(one)}" for one in row["parents"])
    if row["how"] == "ensemble":
        backbones = sorted({one.get("backbone", "") for one in row["parents"]})
        of = f" of {', '.join(backbones)}" if len(backbones) > 1 else ""
        return (
            f"The mean of the probabilities of {pluralize(len(row['parents']), 'network')}{of}, "
            f"which it keeps: {parents}."
        )
    norms = row["batchnorm_layers"]
    anew = (
        f" The statistics of {pluralize(norms, 'BatchNorm layer')} were computed anew on the "
        "training images."
        if norms
        else ""
    )
    if row["how"] == "wise":
        best = next(one for one in row["curve"] if one["coefficient"] == row["coefficient"])
        return (
            f"Weights between the start, with its linear probe (0), and {parents} (1), WiSE-FT: "
            f"{row['coefficient']:g} was chosen among {len(row['curve'])} mixing coefficients, "
            "the first with the highest validation accuracy, "
            f"{format_percent(best['accuracy'])}.{anew}{_describe_shifted(row)}"
        )
    kept = [one for one in row["ingredients"] if one["kept"]]
    greedy = (
        " Kept, because they do not lower the validation accuracy of the soup: "
        f"{len(kept)} of them."
        if kept
        else ""
    )
    return (
        f"The mean of the weights of {pluralize(len(row['parents']), 'run')}: "
        f"{parents}.{greedy}{anew}"
    )


def _describe_shifted(row: Row) -> str:
    """Describe WiSE-FT's curve on other data sets, with a space before each sentence."""
    words = ""
    for other in row["shifted"]:
        name = Path(other["data"]).name
        if other["problem"]:
            words += f" {name} could not be predicted: {other['problem']}"
            continue
        at = {point["coefficient"]: format_percent(point["accuracy"]) for point in other["curve"]}
        words += (
            f" On {pluralize(other['images'], 'image')} of {name}, by which nothing was chosen: "
            f"{at[0]} at the start, {at[row['coefficient']]} as chosen, {at[1]} fine-tuned."
        )
    return words


def _describe_start(row: Row) -> str:
    cache = row["cache"]
    compilation = f", {cache['compilation']}" if cache["compilation"] else ""
    kept = (
        f"no cache: {cache['reason']}"
        if cache["where"] == "off"
        else f"frozen stages cached ({format_bytes(cache['bytes'])}{compilation})"
    )
    trained = [stage["name"] for stage in row["stages"] if stage["trains"]]
    rates = (
        ""
        if len({stage["rate"] for stage in row["stages"] if stage["trains"]}) == 1
        else ", each at its own rate"
    )
    where = f"{row['backbone']} on {describe_devices(row)} in {describe_precision(row)}"
    if not row["epochs"]:
        fits = STRATEGIES[row["strategy"]].fits if row["strategy"] in STRATEGIES else None
        averaged = f"weights of {', '.join(trained)} are averaged"
        what = "the head is fitted to the output of the frozen stages" if fits else averaged
        if row["averaged"] == "ensemble":
            return (
                "The probabilities that its runs have predicted are averaged; "
                "no image goes through a network."
            )
        return f"{where}: {what}, without epochs; {kept}."
    return (
        f"{where}: {', '.join(trained)} train{rates}; {kept}. "
        f"{pluralize(row['steps_per_epoch'], 'step')} per epoch, "
        f"{pluralize(row['epochs'], 'epoch')}. {describe_live_metrics(row)}".rstrip()
    )


def describe_devices(started: Row) -> str:
    """Describe the devices of a run, and how BatchNorm trains on several of them.

    Args:
        started: a RunStarted row.
    """
    norms = ", BatchNorm on the statistics of each one's share," if started.get("batchnorm") else ""
    return f"{name_devices(started)}{norms}"


def describe_lineage(started: Row) -> str:
    """Describe the chain of runs that a run started from; empty without one.

    Args:
        started: a RunStarted row.
    """
    lineage = started.get("lineage", ())
    if not lineage:
        return ""
    chain = ", which started from ".join(f"run {_describe_ancestor(one)}" for one in lineage)
    head = "Its head was kept" if started["head_kept"] else "The head is new"
    return f"Started from {chain}. {head}."


def _describe_ancestor(one: Row) -> str:
    strategy = (
        lower_first(STRATEGIES[one["strategy"]].title)
        if one["strategy"] in STRATEGIES
        else one["strategy"]
    )
    facts = [
        f"{strategy} on {one['data']}",
        f"best epoch {one['epoch']}" if one["epoch"] else "",
        "" if one["accuracy"] is None else f"validation accuracy {format_percent(one['accuracy'])}",
    ]
    return f"{one['run']} ({', '.join(filter(None, facts))})"


def describe_precision(started: Row) -> str:
    """Return the precision of a run, on an NVIDIA GPU with TF32 and the cuDNN benchmark mode.

    Args:
        started: a RunStarted row.
    """
    found = started.get("numerics")
    if started["device"] != "cuda" or not found:
        return str(started["precision"])
    tf32, benchmark = ("on" if found[name] else "off" for name in ("tf32", "cudnn_benchmark"))
    return f"{started['precision']} (TF32 {tf32}, cuDNN benchmark {benchmark})"


def describe_live_metrics(started: Row) -> str:
    """Explain the losses and accuracies of a run while it trains.

    The text is empty in fp32 and without epochs.

    Args:
        started: a RunStarted row.
    """
    if started["precision"] == "fp32" or not started["epochs"]:
        return ""
    return (
        f"The metrics of each epoch are computed in {started['precision']}, as in training, "
        "but the head in fp32, and decide which epoch is the best; "
        "that one is evaluated in fp32 at the end."
    )


def name_devices(started: Mapping[str, Any]) -> str:
    """Return the device, or devices, of a run.

    Args:
        started: a RunStarted row.
    """
    label: str = started["device_label"]
    ranks = started.get("ranks", 1)
    return (
        label
        if ranks == 1
        else f"{ranks} devices ({_BACKENDS.get(started['device'], 'gloo')}), each {label}"
    )
