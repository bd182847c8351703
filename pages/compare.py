"""Compare: runs side by side, on shared axes and in one table."""

import streamlit as st

from finetune_core.errors import FinetuneError
from finetune_core.evaluation.results import evaluation
from finetune_core.figures.curves import compared_curve
from finetune_core.runs.store import Run, summary
from finetune_core.training.strategies import STRATEGIES
from finetune_core.words import SPLIT_WORDS, duration, number, percent
from pages.shared import form
from pages.shared.chrome import next_step, page
from pages.shared.state import nothing_yet, run_label, store

page("pages/compare.py", "Put runs side by side: which stages were worth training, and what did it cost?")


def table(runs: list[Run]) -> None:
    rows = []
    for run in runs:
        told = summary(run)
        row = {
            "Run": short_label(run),
            "Strategy": STRATEGIES[run.config.strategy].title,
            "Trainable": f"{number(told['trainable_parameters'])} ({percent(told['trainable_parameters'] / told['total_parameters'])})",
            "Learning rate": f"{run.config.learning_rate:g}",
            "Time": duration(told["seconds"]) if told["seconds"] else "unknown",
            "Best epoch": told["best_epoch"],
        }
        try:
            result = evaluation(run)
            row["Accuracy"] = percent(result.accuracy)
            row["95 % interval"] = f"{percent(result.low)} to {percent(result.high)}"
            row["On"] = f"{number(result.images)} {SPLIT_WORDS[result.split].lower()}"
        except FinetuneError as error:
            row["Accuracy"] = str(error)
        rows.append(row)
    st.dataframe(rows, hide_index=True)


def short_label(run: Run) -> str:
    return f"{STRATEGIES[run.config.strategy].title}, {run.config.backbone} ({run.run_id[-4:]})"


def warn_of_differences(runs: list[Run]) -> None:
    """A difference in the data makes a difference in accuracy worthless; one in settings only muddles its cause."""
    if len({run.history.started["fingerprint"] for run in runs}) > 1:
        st.error(
            "These runs did not use the same images in the same split: their accuracies cannot be compared.",
            icon=":material/error:",
        )
    ignored = {"strategy", "cut", "stage_rates", "learning_rate", "seed", "data"}
    settings = [run.config.model_dump(exclude=ignored) for run in runs]
    differing = sorted(name for name in settings[0] if len({str(one[name]) for one in settings}) > 1)
    if differing:
        st.info(
            f"Besides the strategy, these settings differ: {', '.join(form.label(name).lower() for name in differing)}.",
            icon=":material/info:",
        )


runs = [run for run in store().runs() if run.judged]
if len(runs) < 2:
    nothing_yet("Two runs are needed to compare. Train one more with another strategy, or start with the sample.")
    next_step("pages/configure.py", "Configure a run", primary=False)
    st.stop()
by_id = {run.run_id: run for run in runs}
asked = st.query_params.get_all("runs") or st.session_state.get("compared_runs", [])
# The address wins, as it does for a single run.
st.session_state["runs_box"] = [run_id for run_id in asked if run_id in by_id] or list(by_id)[:2]


def choice_to_address() -> None:
    st.query_params["runs"] = st.session_state["runs_box"]


chosen = st.multiselect(
    "Runs",
    list(by_id),
    format_func=lambda run_id: run_label(by_id[run_id]),
    key="runs_box",
    on_change=choice_to_address,
    label_visibility="collapsed",
)
st.session_state["compared_runs"] = chosen
if st.query_params.get_all("runs") != chosen:
    st.query_params["runs"] = chosen
if len(chosen) < 2:
    st.info("Choose two runs or more.", icon=":material/info:")
    st.stop()
compared = [by_id[run_id] for run_id in chosen]
warn_of_differences(compared)
table(compared)
st.subheader("Validation, epoch by epoch", anchor=False)
for column, kind in zip(st.columns(2), ("loss", "accuracy"), strict=True):
    curves = compared_curve(kind, [(short_label(run), run.history.epochs) for run in compared])
    column.altair_chart(curves, alt=f"Validation {kind} by epoch, one line a run")
st.caption("Where the intervals overlap much, these images cannot tell the runs apart.")
next_step("pages/predict.py", "Try a run on new images")
