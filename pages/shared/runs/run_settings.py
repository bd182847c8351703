"""Settings of a run, to read and to copy."""

import streamlit as st

from finetune_core.commands.repeat import train_command
from finetune_core.config import CONFIG_FILE, RunConfig, all_settings, get_setting
from finetune_core.config.changes import list_changed_settings
from finetune_core.config.metadata import Setting
from finetune_core.data.edits import describe_edits
from finetune_core.formatting import pluralize
from finetune_core.runs.log import describe_lineage
from finetune_core.runs.store import Run
from finetune_core.training.strategies.catalogue import count_epochs
from pages.shared.chrome import escape_markdown
from pages.shared.configure import form
from pages.shared.runs.again import describe_differences, use_again


def draw_lineage(run: Run) -> None:
    """Name the earlier run that a run started from, if there is one."""
    if text := describe_lineage(run.history.started or {}):
        st.caption(f":material/account_tree: {escape_markdown(text)}")


def draw_run_settings(run: Run) -> None:
    """Draw a run's changes against the defaults, its command line, all settings, and JSON."""
    config = run.config
    auto = {name: get_setting(name) for name in config.auto if count_epochs(config)}
    changes = {
        one.label: f"{form.format_value(one, value)} :gray[(default {_format_default(one)})]"
        for one, value in list_changed_settings(config)
        if one.name not in config.auto
    }
    chosen = {
        one.label: f"{form.format_value(one, getattr(config, name))} :gray[(auto)]"
        for name, one in auto.items()
    }
    title = f"{pluralize(len(changes), 'setting')} changed" if changes else "Settings"
    with st.expander(title, icon=":material/tune:"):
        if changes or chosen:
            st.table(
                {escape_markdown(label): text for label, text in (changes | chosen).items()},
                border="horizontal",
                width="content",
                alt="Settings that are not at their default",
            )
        else:
            st.markdown("All settings are at their defaults.")
        if st.button(
            "Use these settings again",
            icon=":material/replay:",
            help="The settings and the data set go to Configure.",
        ):
            use_again(run)
        if message := describe_differences(run):
            st.caption(escape_markdown(message))
        st.markdown("**Command line**")
        st.code(train_command(config, run.run_dir / CONFIG_FILE), language="bash", wrap_lines=True)
        if edits := describe_edits(config.edits):
            st.caption(
                escape_markdown(
                    "The command names the run's file, because changes to single images have no "
                    f"option: {edits}."
                )
            )
        elif config.averaged:
            st.caption(
                "The command names the run's file, which holds the runs whose weights are averaged."
            )
        elif config.from_run:
            st.caption(
                "The command names the run's file, because other settings follow from the run to "
                "start from."
            )
        with st.container(horizontal=True):
            _draw_all_settings(config)
        st.caption(escape_markdown(f"Run folder: {run.run_dir}"))


def _format_default(one: Setting) -> str:
    return "auto" if one.follows else form.format_value(one, one.default)


def _draw_all_settings(config: RunConfig) -> None:
    """Draw all settings, as a table and as JSON."""
    with st.popover("All settings", icon=":material/list:"):
        st.table(
            {
                escape_markdown(one.label): form.format_value(one, getattr(config, name))
                for name, one in all_settings().items()
                if one.section
            },
            border="horizontal",
            alt="All settings of this run",
        )
    with st.popover("JSON", icon=":material/data_object:"):
        st.code(config.model_dump_json(indent=2, exclude={"edits"}), language="json")
        if config.edits:
            st.caption(
                f"Without the changes to single images, which {CONFIG_FILE} in the run's folder "
                "holds."
            )
