"""Sections of Compare: the changes of each stage in training, and images two runs disagree on."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import streamlit as st

from finetune_core.errors import FinetuneError, RunError
from finetune_core.evaluation.comparison.arms import run_titles
from finetune_core.evaluation.comparison.disagree import Disagreement, find_disagreements
from finetune_core.evaluation.comparison.layer_diagnostics import (
    Layers,
    load_layers,
    measure_layers,
)
from finetune_core.evaluation.comparison.thaw_next import RULE, Advice, advise_next_stage
from finetune_core.figures.layer_diagnostics import MEASURES, plot_by_stage, plot_probe_profile
from finetune_core.formatting import SPLIT_TITLES, format_percent, pluralize
from finetune_core.runs.store import Run
from pages.shared.chrome import escape_markdown
from pages.shared.data.chosen import readable_roots
from pages.shared.evaluation.networks import get_explanation
from pages.shared.jobs import offer

_ROWS = 4  # pairs of explanations at a time; each takes a moment


def draw_layer_diagnostics(runs: Sequence[Run]) -> None:
    """Draw the layer diagnostics of each run. They are measured on request and kept with the runs.

    Args:
        runs: evaluated runs, one per arm in the order of the arms, whose colours and symbols they
            get.
    """
    st.caption(
        "Each network, stage by stage, beside its initial state: weights, features, gradients.",
        help="Says which stage to thaw next: a linear model on the features of each stage shows up "
        "to which stage pretrained features suffice.",
    )
    ensembles = [
        title for run, title in zip(runs, run_titles(runs), strict=True) if run.config.is_ensemble
    ]
    if ensembles:
        st.caption(
            escape_markdown(
                "Left out, because each of its networks has stages of its own: "
                f"{', '.join(ensembles)}."
            )
        )
    runs = [run for run in runs if not run.config.is_ensemble]
    titles = run_titles(runs)
    layers_by_run = {run.run_id: load_layers(run) for run in runs}
    for run, title in zip(runs, titles, strict=True):
        if earlier := run.config.earlier_run:
            st.caption(
                escape_markdown(
                    f"{title}: its initial state is the network that it started from, the best "
                    f"epoch of run {Path(earlier).name}."
                )
            )
    missing = [run for run in runs if layers_by_run[run.run_id] is None]
    if missing:
        offer(
            f"Measure {pluralize(len(missing), 'run')}",
            f"layers:{','.join(layers_by_run)}",
            "Comparing the stages",
            partial(measure_layers, missing, readable_roots()),
            button_key="measure-layers",
            icon=":material/straighten:",
        )
    by_backbone: dict[str, dict[str, Layers]] = {}
    for run, title in zip(runs, titles, strict=True):
        if layers := layers_by_run[run.run_id]:
            by_backbone.setdefault(run.config.backbone, {})[title] = layers
    for backbone, measured in by_backbone.items():
        if len(by_backbone) > 1:
            st.markdown(f"**{escape_markdown(backbone)}**")
        _draw_stages(backbone, measured, {title: number for number, title in enumerate(titles)})


def _draw_stages(backbone: str, measured: dict[str, Layers], indices: dict[str, int]) -> None:
    first = next(iter(measured.values()))
    names = [stage.name for stage in first.stages]
    left, right = st.columns(2, gap="medium")
    with left:
        st.markdown("**Which stage to thaw next**", help=RULE)
        advised: dict[Advice, list[str]] = {}
        for title, layers in measured.items():
            advised.setdefault(advise_next_stage(layers), []).append(title)
        for advice, titles in advised.items():
            icon = ":material/local_fire_department:" if advice.stage else ":material/drag_handle:"
            st.markdown(
                f"{icon} {escape_markdown(', '.join(titles))}: **{escape_markdown(advice.what)}**. "
                f"{escape_markdown(advice.reason)}"
            )
    with right:
        if first.probes:
            st.markdown(
                "**Linear probe by layer**",
                help="Validation accuracy of a linear model on the features of each stage before "
                "training, ± one standard error. Deeper stages that fall more than one standard "
                "error below the best have lost information that an earlier one still has.",
            )
            st.plotly_chart(
                plot_probe_profile(first.probes, names),
                key=f"probes-{backbone}",
                alt="Accuracy of a linear model on the features of each stage, before training",
            )
        else:
            st.caption(
                "Not available: too few validation images for a linear model, or a network that "
                "cannot be cut between its stages."
            )
    for start in range(0, len(MEASURES), 2):
        for column, measure in zip(
            st.columns(2, gap="medium"), MEASURES[start : start + 2], strict=True
        ):
            with column:
                st.markdown(f"**{measure.title}**", help=measure.help)
                st.plotly_chart(
                    plot_by_stage(measure, measured, indices),
                    key=f"moved-{backbone}-{measure.field}",
                    alt=f"{measure.title}, by stage",
                )
    st.caption(
        "Stages from the image to the head; hollow: frozen. Measured on "
        f"{pluralize(first.judged, 'validation image')} and, for gradients, "
        f"{pluralize(first.pulled, 'training image')}, drawn by a fixed seed. The head is left out "
        "where it has no meaning."
    )


def draw_disagreements(runs: Sequence[Run]) -> None:
    """Draw the images that only one of two runs classifies correctly, each with its Grad-CAM.

    Args:
        runs: two or more runs, evaluated on the same images. Of more, the user chooses two.
    """
    titles = dict(zip([run.run_id for run in runs], run_titles(runs), strict=True))
    run_a, run_b = _choose_two(runs, titles) if len(runs) > 2 else runs
    if run_a is run_b:
        st.info("Choose two different runs.", icon=":material/info:")
        return
    try:
        found = find_disagreements(run_a, run_b)
    except RunError as error:
        st.error(escape_markdown(str(error)), icon=":material/error:")
        return
    title_a, title_b = titles[run_a.run_id], titles[run_b.run_id]
    with st.container(horizontal=True):
        st.metric("Both correct", f"{found.both:,}", border=True)
        st.metric(f"Only {escape_markdown(title_a)}", f"{len(found.only_a):,}", border=True)
        st.metric(f"Only {escape_markdown(title_b)}", f"{len(found.only_b):,}", border=True)
        st.metric("Neither", f"{found.neither:,}", border=True)
    if found.only_a.empty and found.only_b.empty:
        st.caption(f"They classify the same of these {pluralize(found.images, 'image')} correctly.")
        return
    if st.toggle("Images with Grad-CAM", key="disagree_box", persist_state="session"):
        _draw_images(found, (run_a, run_b), (title_a, title_b))


def _choose_two(runs: Sequence[Run], titles: dict[str, str]) -> tuple[Run, Run]:
    by_id = {run.run_id: run for run in runs}
    mark = "-".join(run_id[-4:] for run_id in by_id)
    with st.container(horizontal=True):
        a, b = (
            st.selectbox(
                text,
                list(by_id),
                index=index,
                format_func=titles.__getitem__,
                key=f"disagree-{text}-{mark}",
                persist_state="session",
            )
            for index, text in enumerate(("First run", "Second run"))
        )
    return by_id[a], by_id[b]


@st.fragment
def _draw_images(found: Disagreement, runs: tuple[Run, Run], titles: tuple[str, str]) -> None:
    sides = {
        title: rows
        for title, rows in zip(titles, (found.only_a, found.only_b), strict=True)
        if len(rows)
    }
    mark = "-".join(run.run_id[-4:] for run in runs)
    side = st.segmented_control(
        "Which",
        list(sides),
        default=max(sides, key=lambda title: len(sides[title])),
        required=True,
        format_func=lambda title: (
            f"Only {escape_markdown(title)} is correct ({len(sides[title]):,})"
        ),
        key=f"side-{mark}",
        persist_state="session",
        label_visibility="collapsed",
    )
    rows = sides[side]
    num_pages = -(-len(rows) // _ROWS)
    page = (
        st.pagination(num_pages, key=f"pages-{mark}-{titles.index(side)}") if num_pages > 1 else 1
    )
    columns = st.columns(2)
    for number, (_, row) in enumerate(rows.iloc[(page - 1) * _ROWS : page * _ROWS].iterrows()):
        with columns[number % 2]:
            _draw_image(found, row, runs, titles)
    st.caption(
        f"{SPLIT_TITLES[found.split]} images, the clearest cases first. Bright regions support the "
        "predicted class (Grad-CAM, Selvaraju et al. 2017): it shows where, not why, and coarsely."
    )


def _draw_image(
    found: Disagreement, row: pd.Series, runs: tuple[Run, Run], titles: tuple[str, str]
) -> None:
    true = found.classes[row["label"]]
    with st.container(border=True):
        st.markdown(f"**{escape_markdown(true)}** · {escape_markdown(row['id'])}")
        with st.grid("auto", min_column_width=110, gap="small"):
            for number, (run, title, letter) in enumerate(zip(runs, titles, "ab", strict=True)):
                predicted = int(row[f"predicted_{letter}"])
                try:
                    explained = get_explanation(run, row["id"], (predicted,))
                except FinetuneError as error:
                    st.error(escape_markdown(str(error)), icon=":material/broken_image:")
                    continue
                if number == 0:
                    st.image(
                        explained.picture, caption="network input", alt=f"{row['id']}, class {true}"
                    )
                sign = "✓" if predicted == row["label"] else "✗"
                text = (
                    f"{sign} {title}: {found.classes[predicted]} "
                    f"({format_percent(row[f'confidence_{letter}'], 0)})"
                )
                st.image(
                    explained.overlays[predicted],
                    caption=escape_markdown(text),
                    alt=f"{row['id']}, {text}",
                )
