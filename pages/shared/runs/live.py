"""Live view of a run on the Train page. All of it is read from the run directory."""

from typing import Any, Literal, get_args

import streamlit as st

from finetune_core.errors import FinetuneError
from finetune_core.figures.curves import CURVE_HEIGHT, Kind, plot_training_curve
from finetune_core.figures.stages import Quantity, plot_stage_curve
from finetune_core.formatting import (
    PHASE_TITLES,
    format_bytes,
    format_duration,
    format_number,
    format_percent,
    format_time_left,
    pluralize,
)
from finetune_core.runs.log import describe_event, describe_fit, describe_live_metrics, format_log
from finetune_core.runs.smoothing import smooth
from finetune_core.runs.store import Run
from finetune_core.training.devices.turn import WAITING
from finetune_core.training.prediction_history import Flip, find_flips, load_prediction_history
from pages.shared.chrome import escape_markdown
from pages.shared.images import Picture, draw_gallery, make_run_picture
from pages.shared.runs.backend import is_behind

_NUMBERS: dict[Kind, str] = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
}
_MEANINGS: dict[Kind, str] = {
    "accuracy": "Share of images classified correctly.",
    "balanced_accuracy": "Mean of the classes' recalls: each class counts the same.",
    "macro_f1": "Mean of the classes' F1, the harmonic mean of precision and recall.",
}
_QUANTITIES: dict[Quantity, str] = {
    "update": (
        "Norm of the last update of a stage, relative to the norm of its weights. Around 0.001 is "
        "usual; far more means a learning rate that is too high."
    ),
    "gradient_norm": "Norm of the loss gradient, by stage.",
    "learning_rate": "The learning rate, by stage.",
}
# Seconds between two refreshes, early and later in a run. An open page takes time from training on
# the same cores, and a long run changes slowly.
_REFRESH, _REFRESH_LATER = 2.0, 4.0
_FIRST = 60.0  # seconds of a run with frequent refreshes

_NO_EPOCHS = "This run is done in one go: there are no epochs to follow."
_STAGES, _FLIPS, _LOG, _ENGINE = "Stages", "Predictions that changed", "Log", "Timing"


def refresh_seconds(run: Run) -> float | None:
    """Return the seconds between two refreshes; None once nothing new can appear."""
    if not run.is_active:
        return None
    steps = run.history.steps
    return _REFRESH_LATER if steps and steps[-1]["seconds"] > _FIRST else _REFRESH


def draw_progress(run: Run) -> None:
    """Draw the progress bar."""
    history = run.history
    # Read once, because another session may read on meanwhile.
    progress, steps = history.progress, history.steps
    if run.status == "queued":
        text = "Waiting for the run before it" if is_behind(run) else PHASE_TITLES["prepare"]
        st.progress(history.fraction, text)
    elif run.status == "waiting":
        st.progress(history.fraction, PHASE_TITLES[WAITING])
    elif progress and (not steps or progress["phase"] != "validate"):
        done, total = progress["done"], progress["total"]
        count = format_bytes if progress["phase"] == "download" else format_number
        time_left_seconds = history.progress_seconds_left
        text = PHASE_TITLES[progress["phase"]]
        if done or total:
            text += f": {count(done)}" + (f" of {count(total)}" if total else "")
        text += f", {format_time_left(time_left_seconds)}" if time_left_seconds is not None else ""
        st.progress(done / total if total else 0.0, text)
    elif not steps:
        st.progress(0.0, PHASE_TITLES["prepare"])
    elif progress and history.fraction >= 1:
        st.progress(1.0, PHASE_TITLES[progress["phase"]])
    else:
        time_left_seconds = history.seconds_left
        epoch = f"Epoch {steps[-1]['epoch']} of {run.started['epochs']}"
        st.progress(
            history.fraction,
            epoch
            + (f", {format_time_left(time_left_seconds)}" if time_left_seconds is not None else ""),
        )


def draw_numbers(run: Run) -> None:
    """Draw the latest loss and accuracy, the speed, and the memory."""
    history = run.history
    last = history.epochs[-1] if history.epochs else None
    with st.container(horizontal=True):
        if history.steps:
            note = "Of the latest batches: a moving average, as in the curve."
            st.metric("Training loss", f"{_smooth_latest(run, 'loss'):.3f}", help=note, border=True)
            st.metric(
                "Training accuracy",
                format_percent(_smooth_latest(run, "accuracy")),
                help=note,
                border=True,
            )
        if last:
            st.metric(
                "Validation loss",
                f"{last['val_loss']:.3f}",
                help=f"After epoch {last['epoch']}.",
                border=True,
            )
            st.metric(
                "Validation accuracy",
                format_percent(last["val_accuracy"]),
                help=f"After epoch {last['epoch']}.",
                border=True,
            )
        if run.status == "running" and history.images_per_second:
            st.metric(
                "Images per second",
                format_number(history.images_per_second),
                help="Training images, recently.",
                border=True,
            )
        if run.status == "running" and last:
            note = (
                "What this run's own tensors take: the networks, the optimizer, images or "
                "activations in memory, and what a step keeps for its backward pass. The rest of "
                "the program is not counted, nor what is on a GPU."
            )
            st.metric("Memory", format_bytes(last["memory_bytes"]), help=note, border=True)
            if last["device_bytes"] is not None:
                note = "The most of the GPU's memory that this run has held so far."
                st.metric("GPU memory", format_bytes(last["device_bytes"]), help=note, border=True)


def draw_fit(run: Run) -> None:
    """Draw the value that cross-validation chose for a fitted head, and the values tried."""
    fitted = run.history.fitted
    if not fitted:
        return
    st.markdown(escape_markdown(describe_fit(fitted)))
    if not fitted["candidates"]:
        return
    rows = [
        {
            fitted["parameter"]: f"{one['value']:.2g}"
            + (" (chosen)" if one["value"] == fitted["chosen"] else ""),
            "Held-out loss": f"{one['loss']:.4f}",
            "Held-out accuracy": format_percent(one["accuracy"]),
        }
        for one in fitted["candidates"]
    ]
    with st.expander("Values that were tried", icon=":material/table:"):
        st.dataframe(rows, hide_index=True)
        st.caption(
            "On training images that the fit had not seen. Validation and test images play no "
            "part in the choice."
        )


def _smooth_latest(run: Run, kind: Literal["loss", "accuracy"]) -> float:
    started = run.started
    images, steps_per_epoch, epochs = (
        started["counts"]["train"],
        started["steps_per_epoch"],
        started["epochs"],
    )
    return smooth(run.history.steps, kind, images, steps_per_epoch, epochs)[-1]


def draw_notices(run: Run) -> None:
    """Draw the warnings about a run."""
    history = run.history
    for notice in run.notices:
        st.warning(escape_markdown(notice), icon=":material/report:")
    if history.started and history.started["weights"] == "none":
        st.warning("This run started from random weights.", icon=":material/casino:")
    for row, icon in (
        (history.skipped, ":material/broken_image:"),
        (history.lost, ":material/broken_image:"),
        (history.short, ":material/memory:"),
    ):
        if row:
            st.warning(escape_markdown(describe_event(row)), icon=icon)
    warn_undertrained(run)


def warn_undertrained(run: Run) -> None:
    """Warn that a run has not converged, and say why."""
    if run.convergence.converged is False:
        reason = run.convergence.reason
        st.warning(
            escape_markdown(
                f"Not converged: {reason}. Train longer, or with a larger learning rate."
            ),
            icon=":material/trending_down:",
        )


def draw_curves(run: Run) -> None:
    """Draw the curve of the loss, and a second curve to choose."""
    history = run.history
    if not history.steps:
        return
    requested = st.session_state.get("curve", "accuracy")
    kinds: tuple[Kind, ...] = ("loss", requested if requested in get_args(Kind) else "accuracy")
    for column, kind in zip(st.columns(2), kinds, strict=True):
        with column:
            _draw_training_curve(kind, run.run_id, run.status, run)
    st.segmented_control(
        "Second curve",
        list(_NUMBERS),
        format_func=_NUMBERS.__getitem__,
        default="accuracy",
        required=True,
        key="curve",
        persist_state="session",
        label_visibility="collapsed",
        help=" ".join(f"{_NUMBERS[kind]}: {meaning}" for kind, meaning in _MEANINGS.items()),
    )
    if note := describe_live_metrics(run.started):
        st.caption(note)


# Drawing takes time from the training in this process. So all sessions share a drawing for a few
# seconds.
@st.cache_data(ttl=6, max_entries=200, show_spinner=False)
def _draw_training_curve(kind: Kind, run_id: str, status: str, _run: Run) -> None:
    started, history = _run.started, _run.history
    figure = plot_training_curve(
        kind,
        history.steps,
        history.epochs,
        started["counts"]["train"],
        started["steps_per_epoch"],
        started["epochs"],
    )
    st.altair_chart(
        figure,
        height=CURVE_HEIGHT,
        alt=f"{kind.replace('_', ' ')} by epoch, for training and validation images",
    )


@st.cache_data(ttl=12, max_entries=200, show_spinner=False)
def _draw_stage_curve(quantity: Quantity, run_id: str, status: str, _run: Run) -> None:
    started = _run.started
    names = [stage["name"] for stage in started["stages"]]
    figure = plot_stage_curve(
        quantity, _run.history.measured_steps, names, started["steps_per_epoch"], started["epochs"]
    )
    st.altair_chart(
        figure, height=CURVE_HEIGHT, alt=f"{quantity.replace('_', ' ')} of each stage by epoch"
    )


def draw_details(run: Run) -> None:
    """Draw the box of details that answer questions about the curves."""
    if not run.history.started:
        return
    views = {_STAGES: _draw_stages, _FLIPS: _draw_flips, _LOG: _draw_log, _ENGINE: _draw_timing}
    box = st.expander(
        "Stages, changed predictions, log, timing",
        icon=":material/query_stats:",
        key="details_box",
        on_change="rerun",
    )
    if not box.open:
        return
    with box:
        view = st.segmented_control(
            "Details",
            list(views),
            default=_STAGES,
            required=True,
            key="closer",
            persist_state="session",
            label_visibility="collapsed",
        )
        views[view](run)


def _draw_stages(run: Run) -> None:
    """Draw gradient norm, update and learning rate of each stage."""
    history = run.history
    if not run.started["epochs"]:
        st.caption(_NO_EPOCHS)
        return
    if not history.measured_steps:
        st.caption("No measurements yet: a few steps of each epoch are measured.")
        return
    for column, (quantity, meaning) in zip(st.columns(3), _QUANTITIES.items(), strict=True):
        with column:
            _draw_stage_curve(quantity, run.run_id, run.status, run)
            st.caption(meaning)


def _draw_flips(run: Run) -> None:
    """Draw the validation images whose predicted class has changed."""
    if not run.started["epochs"]:
        st.caption(_NO_EPOCHS)
        return
    try:
        history = load_prediction_history(run.run_dir, len(run.started["classes"]))
    except FinetuneError as error:
        st.error(escape_markdown(str(error)))
        return
    if len(history.predicted) < 2:
        st.caption("Available after two epochs.")
        return
    changed, classes = find_flips(history), run.started["classes"]
    if not changed:
        st.caption(
            f"None of the {format_number(len(history.ids))} tracked validation images has changed "
            "its predicted class."
        )
        return
    st.caption(
        f"{pluralize(len(changed), 'image')} of the {format_number(len(history.ids))} tracked "
        "validation images changed their predicted class, the latest first. Images that keep "
        "flipping are hard, mislabelled, or show two things."
    )

    def picture(index: int) -> Picture:
        flip = changed[index]
        text = _describe_flip(flip, classes)
        return make_run_picture(run, flip.id, text, f"{flip.id}: {text}")

    draw_gallery(len(changed), picture, f"flips-{run.run_id}", per_page=12)


def _describe_flip(flip: Flip, classes: list[str]) -> str:
    turns = [classes[label] for label in flip.turns]
    listed = turns if len(turns) <= 4 else [turns[0], "…", *turns[-2:]]
    right = "correct now" if flip.predicted[-1] == flip.label else "wrong now"
    return f"{classes[flip.label]}: {' → '.join(listed)} (epoch {flip.last}, {right})"


def _draw_log(run: Run) -> None:
    lines = format_log(run.history.notable)
    st.code(
        "\n".join(reversed(lines)) or "No events yet.",
        language=None,
        height=min(400, 60 + 24 * len(lines)),
        wrap_lines=True,
    )


def _draw_timing(run: Run) -> None:
    """Draw the time that each part took, and the use of the cache."""
    history = run.history
    cache, shares = run.started["cache"], history.sum_seconds_by_part()
    names = {
        "decode": "Decoding",
        "trunk": "Computing the frozen stages (once)",
        "train": "Training",
        "validate": "Validating",
        "evaluate": "Final evaluation",
    }
    st.markdown(
        "**Timing** · "
        + " · ".join(f"{names[part]} {format_duration(spent)}" for part, spent in shares.items())
    )
    if cache["where"] == "off":
        st.caption(escape_markdown(f"No cache: {cache['reason']}."))
    else:
        location = {"memory": "in memory", "disk": "on disk"}[cache["where"]]
        views = (
            f", {pluralize(cache['views'], 'augmented version')} of each training image"
            if cache["views"]
            else ""
        )
        saved = history.estimate_saved_seconds()
        found = (
            f"{format_percent(cache['found'] / cache['rows'], 0)} of it was cached before."
            if cache["found"]
            else "all of it computed for this run."
        )
        text = f"Cache: {format_bytes(cache['bytes'])} {location}{views}; {found}"
        text += f" Frozen stages: {cache['compilation']}." if cache["compilation"] else ""
        st.caption(
            escape_markdown(text + (f" Saved so far: {format_duration(saved)}." if saved else ""))
        )
    expected, end = run.started["forecast"], history.end
    if expected and end and end.get("seconds") and history.epochs:
        epoch = sum(row["train_seconds"] + row["val_seconds"] for row in history.epochs) / len(
            history.epochs
        )
        st.caption(
            f"Forecast and actual: {format_duration(expected['seconds'])}, "
            f"{format_duration(end['seconds'])} in total; "
            f"{format_duration(expected['epoch_seconds'])}, {format_duration(epoch)} per epoch; "
            f"{_compare_bytes('memory_bytes', expected, history.epochs)} of memory; "
            + (
                f"{on_gpu} of GPU memory; "
                if (on_gpu := _compare_bytes("device_bytes", expected, history.epochs))
                else ""
            )
            + f"{format_bytes(expected['cache_bytes'])}, {format_bytes(cache['bytes'])} of cache."
        )


def _compare_bytes(name: str, expected: dict[str, Any], epochs: list[dict[str, Any]]) -> str:
    """Return the expected and the greatest number of bytes; empty if one of them is not known."""
    measured = [row[name] for row in epochs if row[name] is not None]
    return (
        f"{format_bytes(expected[name])}, {format_bytes(max(measured))}"
        if measured and expected.get(name) is not None
        else ""
    )
