"""Predict: show a run new images."""

import streamlit as st

from finetune_core.data.decode import thumbnail
from finetune_core.errors import FinetuneError, ImageError
from finetune_core.evaluation.predict import Predictor, load_predictor
from finetune_core.figures.judged import probability_bars
from finetune_core.words import percent
from pages.shared.chrome import next_step, page, plain
from pages.shared.state import choose_run, nothing_yet, store

_SHOWN = 5  # classes an image

page("pages/predict.py", "Give a trained network new images, and see what it takes them for.")


@st.cache_resource(max_entries=2, show_spinner="Loading the network")
def predictor(run_id: str) -> Predictor:
    return load_predictor(store().run(run_id))


def show(number: int, name: str, data: bytes, network: Predictor) -> None:
    with st.container(border=True):
        st.markdown(f"**{plain(name)}**")
        try:
            probabilities = network.probabilities([data])[0]
            small = thumbnail(data, 320)
        except ImageError as error:
            st.error(plain(str(error)), icon=":material/broken_image:")
            return
        order = probabilities.argsort()[::-1][:_SHOWN]
        best = network.classes[order[0]]
        with st.container(horizontal=True):
            st.image(small, width=220, alt=f"{name}, taken for {best}")
            with st.container(width="stretch"):
                st.markdown(f"### {plain(best)} · {percent(probabilities[order[0]])}")
                st.plotly_chart(
                    probability_bars([network.classes[i] for i in order], probabilities[order]),
                    key=f"bars-{number}",
                    alt=f"Probabilities of the likeliest classes of {name}",
                )


runs = [run for run in store().runs() if run.judged]
if not runs:
    nothing_yet("There is no trained network yet. Train one, or see it work on the sample first.")
    next_step("pages/configure.py", "Configure a run", primary=False)
    st.stop()
chosen = choose_run(runs)
uploads = st.file_uploader("Images", accept_multiple_files=True, help="They are looked at in memory and not kept.")
try:
    network = predictor(chosen.run_id)
except FinetuneError as error:
    st.error(plain(str(error)), icon=":material/error:")
    st.stop()
if not uploads:
    classes = ", ".join(network.classes[:12]) + (", …" if len(network.classes) > 12 else "")
    st.info(
        plain(f"Drop an image above. This network knows {len(network.classes)} classes: {classes}."), icon=":material/upload:"
    )
for position, upload in enumerate(uploads):
    show(position, upload.name, upload.getvalue(), network)
st.caption("A network always names one of its classes, also for a picture of something else.")
next_step("pages/configure.py", "Train another one", primary=False)
