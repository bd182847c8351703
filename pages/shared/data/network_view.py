"""Preprocessing: an image beside the network's input, and its augmented versions."""

from collections.abc import Iterable

import streamlit as st

from finetune_core.data.dataset import Dataset
from finetune_core.data.decode import CROP, PAD
from finetune_core.errors import FinetuneError
from finetune_core.models.catalogue import BackboneInfo, backbone_info_for
from finetune_core.training.data_pipeline.preview import make_augmented_versions, network_input
from pages.shared.chrome import escape_markdown
from pages.shared.configure import form, settings
from pages.shared.data.analysis import backbone_and_size
from pages.shared.data.chosen import make_data_key
from pages.shared.images import make_thumbnail

_VERSIONS = 5
_SIDE = 280  # pixels of a picture on the screen
_FITTED = {
    CROP: "Shorter side resized ({}), centre crop",
    PAD: "Longer side resized ({}), padded to a square",
}


def draw_preprocessing(dataset: Dataset) -> None:
    """Draw an image beside the network's input, and its augmented versions."""
    backbone, size = backbone_and_size()
    info = backbone_info_for(settings.read_config().model_copy(update={"backbone": backbone}))
    samples = dataset.table.groupby("label").head(3)["id"].head(300).tolist()
    chosen = st.selectbox(
        "Image",
        samples,
        key=make_data_key("preprocessed"),
        persist_state="session",
        help="Three images of each class to choose from.",
    )
    try:
        network_image = network_input(dataset.root / chosen, info, size)
    except FinetuneError as error:
        st.error(escape_markdown(str(error)))
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        original = make_thumbnail(dataset.root / chosen, _SIDE)
        if isinstance(original, bytes):
            width, height = dataset.by_id.loc[chosen, ["width", "height"]]
            st.image(
                original,
                caption=f"Original: {width} × {height} pixels",
                width=_SIDE,
                alt=f"{chosen}, the whole image",
            )
        else:
            st.caption(escape_markdown(original), width=_SIDE)
        st.image(
            network_image.image,
            caption=f"Network input: {size} × {size} pixels",
            width=_SIDE,
            alt=f"{chosen}, network input",
        )
        st.markdown(
            f"{_FITTED[info.fit].format(info.interpolation)}: **{size} × {size} pixels, 3 "
            f"channels**. Then each channel is shifted by its mean ({_format_values(info.mean)}) "
            f"and divided by its standard deviation ({_format_values(info.std)}); the numbers "
            f"here go from **{network_image.low:.2f}** to **{network_image.high:.2f}**. The image "
            "is those numbers turned back into colours. Backbone, size and the rest are set on "
            "the Configure page.",
            width=420,
        )
    _draw_augmentations(dataset, chosen, info, size)


def _format_values(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _draw_augmentations(dataset: Dataset, chosen: str, info: BackboneInfo, size: int) -> None:
    st.header("Augmentation", anchor=False)
    settings.set_missing_defaults()
    with st.container(width=320):
        form.draw_setting("augmentation", {})
    kind = st.session_state["form_augmentation"]
    if kind == "none":
        st.caption("Training images are not augmented. Choose another augmentation to see it.")
        return
    seed = st.session_state["form_seed"]
    seed = seed if isinstance(seed, int) and 0 <= seed < 2**31 else 0
    others = [
        sample for sample in dataset.table.groupby("label").head(1)["id"] if sample != chosen
    ][:3]
    for sample in (chosen, *others):
        try:
            versions = make_augmented_versions(
                dataset.root / sample, sample, kind, seed, _VERSIONS, info, size
            )
        except FinetuneError as error:
            st.error(escape_markdown(str(error)))
            continue
        with st.grid("auto", min_column_width=110, gap="small"):
            for number_, version in enumerate(versions, start=1):
                with st.container():
                    st.image(
                        version,
                        width="stretch",
                        alt=f"{sample}, augmented version {number_}",
                        caption=f"version {number_}",
                    )
    st.caption(
        "Exactly these images are used by a run with this seed: one version per epoch, or in turn."
    )
