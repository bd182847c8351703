"""Thaw's home page: what this is, what the machine can do, and a way to a trained model without typing."""

from collections.abc import Sequence

import streamlit as st

from finetune_core.config import make_config, setting_of
from finetune_core.data.sample import SAMPLE_NAME
from finetune_core.evaluation.reference_points import reference_points
from finetune_core.evaluation.run_accuracy import run_accuracy
from finetune_core.formatting import size, things
from finetune_core.models.catalogue import PACKAGED, backbone_info, backbone_names, ready_backbones
from finetune_core.models.timm_networks import is_timm_name
from finetune_core.runs.store import Run
from finetune_core.training.device import describe_machine
from finetune_core.training.recipes import DEMO_RECIPE
from pages.shared.address import carried
from pages.shared.chrome import go, next_step, page, plain
from pages.shared.configure.stages import draw_strategy
from pages.shared.data.chosen import recent_data, recent_list
from pages.shared.runs.backend import STATUS_WORDS, store
from pages.shared.runs.damaged import damaged_runs
from pages.shared.runs.first_run import baseline_now, try_it_now
from pages.shared.runs.labels import run_title

page(
    "app.py",
    "Thaw fine-tunes pretrained image classifiers on your own images, in the browser. It shows which layers are worth training: freeze the others, and compare.",
)


def machine() -> None:
    found = describe_machine()
    names = setting_of("device").choices
    ready = ready_backbones()
    with st.container(horizontal=True):
        st.metric(
            "Device",
            names[found.device.kind],
            help=f"{found.device.label}; {found.cores} CPU cores",
            border=True,
        )
        st.metric(
            "Precision",
            found.device.precision,
            help="Number format of the arithmetic. bf16 takes half the memory of fp32 and is faster where the hardware has it; "
            "Thaw uses it only there, and fp16, with a loss scale, on NVIDIA GPUs with tensor cores but without bf16.",
            border=True,
        )
        st.metric(
            "Free memory", size(found.free_memory), help=f"of {size(found.memory)}", border=True
        )
        st.metric(
            "Backbones ready",
            f"{len(ready)} of {len(backbone_names())}",
            help="Pretrained networks whose weights are on this machine; the others are downloaded when first used.",
            border=True,
        )
    with st.expander("Which backbones are ready"):
        backbones()


def backbones() -> None:
    """Which are ready, and how large and good all of them are."""
    st.markdown(
        f"`{PACKAGED}` is installed with Thaw and works without a network. "
        "The weights of the others are downloaded when they are first used: torchvision's, and those of all networks of timm, which "
        "*Find a network* on the Configure page lists."
    )
    names = [name for name in backbone_names() if not is_timm_name(name)]
    infos = [backbone_info(name) for name in dict.fromkeys([*names, *ready_backbones()])]
    st.dataframe(
        {
            "Backbone": [info.name for info in infos],
            "Million parameters": [(info.known_parameters or 0) / 1e6 or None for info in infos],
            "ImageNet accuracy": [info.top1 for info in infos],
            "Ready": [info.ready for info in infos],
        },
        column_config={
            "Million parameters": st.column_config.NumberColumn(format="%.1f"),
            "ImageNet accuracy": st.column_config.NumberColumn(
                format="%.1f %%",
                help="Published accuracy of these weights on ImageNet's 1,000 classes.",
            ),
        },
        hide_index=True,
    )


def recent_runs() -> None:
    runs, damaged = store().all()
    if runs:
        st.header("Latest runs", anchor=False)
    for run in runs[:5]:
        with st.container(horizontal=True, vertical_alignment="center", border=True):
            word, color, icon = STATUS_WORDS[run.status]
            st.badge(word, color=color, icon=icon)
            st.markdown(plain(run_title(run)) + _result(run, runs), width="stretch")
            if st.button("Open", key=f"open-{run.run_id}"):
                go("pages/evaluate.py" if run.judged else "pages/train.py", run.run_id)
    if runs:
        st.page_link(
            "pages/runs.py",
            label=f"All {things(len(runs), 'run')}",
            icon=":material/table_rows:",
            query_params=carried(),
        )
    damaged_runs(damaged)


def _result(run: Run, runs: Sequence[Run]) -> str:
    """Return the run's accuracy with its reference points; empty before the first epoch."""
    if not (accuracy := run_accuracy(run)):
        return ""
    beside = reference_points(run, runs).in_words()
    return f" · **{accuracy.in_words()}**" + (f" :gray[· {plain(beside)}]" if beside else "")


def recent_data_sets() -> None:
    sources = recent_data()
    if sources:
        st.header("Recent data sets", anchor=False)
        recent_list(sources, lead_to="pages/dataset.py")


with st.container(border=True):
    st.markdown(
        "**See it work first.** 1,797 real handwritten digits, a network pretrained on ImageNet, "
        "its last block and a new head trained for five epochs at 96 pixels: well under a minute, no typing."
    )
    draw_strategy(make_config(DEMO_RECIPE | {"data": SAMPLE_NAME}), classes=10)
    with st.container(horizontal=True):
        try_it_now()
        baseline_now()
st.header("This machine", anchor=False)
machine()
recent_runs()
recent_data_sets()
next_step("pages/dataset.py", "Choose your data", primary=False)
