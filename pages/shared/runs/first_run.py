"""First comparison without a question: linear probe and last block on the bundled sample."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import streamlit as st

from finetune_core.config import RunConfig, make_config
from finetune_core.data.dataset import load_dataset
from finetune_core.data.sample import sample_folder, write_digits_folder
from finetune_core.errors import FinetuneError, RunError
from finetune_core.evaluation.comparison.compare import Comparison, compare_runs
from finetune_core.formatting import format_percent, format_points, format_rough_duration, pluralize
from finetune_core.jobs import Job
from finetune_core.runs.store import Run
from finetune_core.training.devices.speed_book import SpeedBook
from finetune_core.training.forecast.forecast import forecast_run
from finetune_core.training.forecast.timing import calibrate
from finetune_core.training.strategies.catalogue import BASELINE, STRATEGIES
from finetune_core.training.strategies.recipes import DEMO_RECIPE
from finetune_core.work import Work
from pages.shared.account import owner
from pages.shared.chrome import escape_markdown, go
from pages.shared.configure.stages import draw_passing, draw_strategy
from pages.shared.data.chosen import choose_data
from pages.shared.images import Picture, draw_gallery, make_data_picture
from pages.shared.jobs import jobs
from pages.shared.runs.backend import store, submit

_REFRESH = 1.0  # seconds
_STRATEGIES = (BASELINE, DEMO_RECIPE["strategy"])
# The forecast leaves out the fit of a probe that was never timed, and the browser's share of the
# processor: 9 s of forecast were 21 s (benchmarks.first_run, two cores).
_BESIDE = 2.2
_EXAMPLES = 12  # images, of all classes in turn
_PROMISE = (
    "**See it work first.** 1,797 real handwritten digits and a network pretrained on ImageNet: "
    "is its last block worth training, or is a linear probe on the frozen features enough?"
)


def draw_empty_page(what: str) -> None:
    """Say on an empty page what to do first, and offer the sample."""
    st.info(what, icon=":material/info:")
    offer_sample("secondary")


def offer_sample(kind: Literal["primary", "secondary"] = "primary") -> None:
    """Draw the button that trains on the bundled sample, without a question."""
    if not st.button("Try it now", type=kind, icon=":material/bolt:", key="try"):
        return
    try:
        configs = make_sample_configs()
        choose_data(configs[0].data)
        there = find_sample_runs(store().list_runs())
        for config in configs:
            if config.strategy not in there:
                submit(config)
    except FinetuneError as error:
        st.error(escape_markdown(str(error)))
        return
    go("app.py")


def make_sample_configs() -> list[RunConfig]:
    """Return the configs of the first comparison, the quicker one first.

    Raises:
        DataError: if the sample cannot be written.
    """
    recipe = DEMO_RECIPE | {"data": str(write_digits_folder())}
    return [make_config(recipe | {"strategy": name}) for name in _STRATEGIES]


def find_sample_runs(runs: Sequence[Run]) -> dict[str, Run]:
    """Return this person's latest active or finished runs of the first comparison, by strategy."""
    me, found = owner(), {}
    for run in sorted(runs, key=lambda run: run.run_id):
        if run.owner == me and (run.is_active or run.status == "finished"):
            shared = {name: getattr(run.config, name) for name in DEMO_RECIPE}
            if shared | {"strategy": ""} == DEMO_RECIPE | {"strategy": ""} and _is_sample(run):
                found[run.config.strategy] = run
    return {name: run for name, run in found.items() if name in _STRATEGIES}


def _is_sample(run: Run) -> bool:
    return run.config.data == str(sample_folder()) and not run.config.edits


def draw_first_comparison(runs: Sequence[Run]) -> bool:
    """Draw the offer, then the progress of its runs, then their result.

    Returns:
        Whether a button below should lead to the person's own data.
    """
    found = find_sample_runs(runs)
    active = [run for run in found.values() if run.is_active]
    if active:
        statuses = {run.run_id: run.status for run in found.values()}
        st.fragment(_go_on, run_every=_REFRESH)(statuses)
        _draw_images(active[0])
        return True
    if len(found) == len(_STRATEGIES):
        try:
            _draw_verdict(compare_runs(list(found.values())), list(found.values()))
            return False
        except RunError as error:
            # The predictions of a run may be gone: the run can be trained again.
            st.warning(escape_markdown(str(error)), icon=":material/folder_off:")
    promise = st.empty()
    promise.markdown(_PROMISE)
    offer_sample()
    draw_strategy(make_config(DEMO_RECIPE | {"data": "any"}), classes=10)
    # Timed last, because on a new server it competes with the drawing.
    job = _timing()
    if job.result:
        promise.markdown(f"{_PROMISE} About {format_rough_duration(job.result)} here.")
    elif job.is_running:
        st.fragment(_redraw_after, run_every=_REFRESH)(job)
    return True


@st.cache_resource(show_spinner=False)
def _timing() -> Job:
    """Time the sample's runs on this machine, beside the page and once per process."""
    return jobs().start("timing:sample", "Timing a few steps", lambda: _time_sample())


def _time_sample() -> Work[float | None]:
    """Return how long the runs of the first comparison take together, in seconds."""
    configs, book = make_sample_configs(), SpeedBook()
    dataset = load_dataset(configs[0].data)
    yield from calibrate(configs, dataset, book)
    forecasts = [forecast_run(config, dataset, book) for config in configs]
    known = [forecast.seconds for forecast in forecasts if forecast]
    return _BESIDE * sum(known) if len(known) == len(configs) else None


def _redraw_after(job: Job) -> None:
    if not job.is_running:
        st.rerun()


def _draw_images(run: Run) -> None:
    """Draw a few of the sample's images, of all classes in turn."""
    folder = Path(run.config.data)
    by_class = [sorted(one.iterdir()) for one in sorted(folder.iterdir()) if one.is_dir()]
    files = [images[turn] for turn in range(2) for images in by_class if len(images) > turn]

    def picture(index: int) -> Picture:
        name = files[index].relative_to(folder).as_posix()
        label = files[index].parent.name
        return make_data_picture(run.config.data, name, label, f"Handwritten digit {label}")

    draw_gallery(min(_EXAMPLES, len(files)), picture, "first_examples", _EXAMPLES)


def _go_on(statuses: Mapping[str, str]) -> None:
    """Draw the runs' progress and the stages being computed.

    Args:
        statuses: status of each run by id, when the page was drawn. The page lists the statuses,
            too, so it is redrawn when one changes.
    """
    # A run may have been deleted since the page was drawn.
    runs = [run for run in store().list_runs() if run.run_id in statuses]
    runs.sort(key=lambda run: _STRATEGIES.index(run.config.strategy))  # as they are trained
    active = [run for run in runs if run.is_active]
    if not active or statuses != {run.run_id: run.status for run in runs}:
        st.rerun()
    run = next((run for run in active if run.status == "running"), active[0])
    progress = run.history.progress
    if progress and progress["phase"] == "trunk":
        draw_passing(run.config, progress["stage"])
    else:
        draw_strategy(run.config, classes=10)
    title = STRATEGIES[run.config.strategy].title
    done = len(runs) - len(active) + run.history.fraction
    st.progress(min(1.0, done / len(_STRATEGIES)), f"{title} …")


def _draw_verdict(comparison: Comparison, runs: Sequence[Run]) -> None:
    st.header(_answer(comparison), anchor=False)
    st.markdown(
        f"On {pluralize(comparison.images, 'test image')} of handwritten digits, with one seed; "
        "a linear probe leaves every stage frozen."
    )
    with st.container(horizontal=True):
        if st.button("Do this with your images", type="primary", icon=":material/arrow_forward:"):
            go("pages/dataset.py")
        if st.button("See the comparison", icon=":material/compare_arrows:"):
            go("pages/compare.py", runs=[run.run_id for run in runs])


def _answer(comparison: Comparison) -> str:
    """Return the gain of training with both accuracies, or the comparison's own answer."""
    [pair] = comparison.pairs
    claim = pair.networks.claim
    gain, low, high = claim.gain, claim.low, claim.high
    if comparison.arms[pair.a].runs[0].config.strategy == BASELINE:
        gain, low, high = -gain, -high, -low
    if not pair.networks.different or gain < 0:
        return escape_markdown(comparison.verdict.lines[0])
    accuracy = {arm.runs[0].config.strategy: arm.accuracy.value for arm in comparison.arms}
    before, after = (format_percent(accuracy[name]) for name in _STRATEGIES)
    return (
        f"{before} → {after}: training the last block gained {format_points(gain)} points "
        f"(95 % CI {format_points(low)} to {format_points(high)})"
    )
