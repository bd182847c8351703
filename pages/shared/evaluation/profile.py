"""Profile of the current data set and backbone, a section of Compare."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import streamlit as st

from finetune_core.errors import DataError, FinetuneError
from finetune_core.figures.profile import describe_profile, plot_profile
from finetune_core.profiling.found import find_setup
from finetune_core.profiling.operate import ProfileRequest, load_current_profile
from finetune_core.profiling.result import Profile
from finetune_core.runs.design import find_profiled_stage
from finetune_core.runs.store import Run
from pages.shared.chrome import escape_markdown
from pages.shared.data.chosen import check_access, choose_data, data_folder, data_name
from pages.shared.data.datasets import current_dataset
from pages.shared.jobs import show_outcome
from pages.shared.runs.backend import store
from pages.shared.runs.profile import profile_key
from pages.shared.sections import draw_section

HELP = (
    "Each stage trained alone, beside the head, from the linear probe's head. Stages are selected "
    "on validation images; gains are those on test images. The intervals hold for all stages "
    "together."
)


def draw_profile(runs: Sequence[Run], *, folded: bool = False) -> None:
    """Draw the latest profile of the current data set, if some of its runs are there.

    Args:
        runs: all runs, the newest first.
        folded: draw a folded section.
    """
    data = data_folder()
    profiled = [run for run in runs if find_profiled_stage(run.config)]
    latest = next((run for run in profiled if run.config.data == data), None)
    if latest is None:
        _offer_other(profiled)
        return
    if folded:
        draw = partial(_draw_latest, runs, latest)
        draw_section("Profile", "profile", ":material/stacked_bar_chart:", draw)
        return
    st.header("Profile", anchor=False, help=HELP)
    _draw_latest(runs, latest)


def _draw_latest(runs: Sequence[Run], latest: Run) -> None:
    config, data = latest.config, latest.config.data
    try:
        dataset = current_dataset(config.split_settings)
        with st.container():
            show_outcome(profile_key(dataset.fingerprint, config.backbone))
        setup = find_setup(runs, data, config.backbone)
        profile = load_current_profile(ProfileRequest(setup, dataset), store()) if setup else None
    except FinetuneError as error:
        st.error(escape_markdown(str(error)), icon=":material/error:")
        return
    if profile is None:
        st.caption("Its runs were trained on other images, or none is finished yet.")
        return
    _draw_result(profile)


def _offer_other(profiled: Sequence[Run]) -> None:
    """Offer to choose the data set of the latest profile, if this session may read it."""
    if not profiled:
        return
    data = profiled[0].config.data
    with suppress(DataError):
        check_access(data)
        st.button(
            escape_markdown(f"Show the profile of {Path(data_name(data)).name}"),
            icon=":material/stacked_bar_chart:",
            key="other_profile",
            help=escape_markdown(f"Makes {data} the current data set."),
            on_click=choose_data,
            args=(data,),
        )


def _draw_result(profile: Profile) -> None:
    st.markdown(f"**{escape_markdown(profile.sentence)}**")
    for note in profile.notes:
        st.caption(escape_markdown(note))
    if not profile.arms:
        return
    st.plotly_chart(plot_profile(profile), key="profile-figure", alt=describe_profile(profile))
    st.caption(
        "Ember: gains more than other images and seeds explain. Ice blue: nothing measurable, or "
        "not converged. Hatched: a short run."
    )
    with st.expander("Table and selection", icon=":material/table:"):
        st.markdown(escape_markdown(profile.to_text()))
        _draw_table(profile.to_rows(), "profile-arms")
        if len(profile.path) > 1:
            _draw_table(profile.path_rows(), "profile-path")
        if profile.prediction_rows()[1]:
            st.markdown("Forecasts that need no training:")
            _draw_table(profile.prediction_rows(), "profile-predictions")


def _draw_table(content: tuple[list[str], list[list[str]]], key: str) -> None:
    columns, rows = content
    st.dataframe([dict(zip(columns, row, strict=True)) for row in rows], hide_index=True, key=key)
