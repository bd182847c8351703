"""Button that profiles the layers: a background job queues round after round."""

from collections.abc import Callable
from functools import partial

import streamlit as st

from finetune_core.config import RunConfig
from finetune_core.data.dataset import Dataset
from finetune_core.data.splits import TRAIN
from finetune_core.errors import FinetuneError
from finetune_core.formatting import format_duration, pluralize
from finetune_core.profiling.operate import (
    FinishedRuns,
    ProfileRequest,
    count_runs,
    forecast_seconds,
    profile,
)
from finetune_core.profiling.plan import Progress
from finetune_core.profiling.queued import train_in_queue
from finetune_core.profiling.result import Profile
from finetune_core.profiling.settings import set_up
from finetune_core.training.devices.speed_book import SpeedBook
from finetune_core.work import Work
from pages.shared.account import owner
from pages.shared.chrome import escape_markdown
from pages.shared.jobs import offer
from pages.shared.runs.backend import store, why_not_timed, worker

LABEL = "Profile the layers"
_TEXT = "Profiling the layers"


def profile_key(fingerprint: str, backbone: str) -> str:
    """Return the key of the job that profiles a backbone on a data set."""
    return f"profile:{fingerprint}-{backbone}"


def offer_profile(
    config: RunConfig, dataset: Dataset, *, button_key: str, disabled: bool = False
) -> Profile | None:
    """Draw the button that starts a profile, and the profile's progress.

    Args:
        config: all settings but those that say which stages train.
        dataset: data set to profile on.
        button_key: key of the button.
        disabled: whether the button is disabled.

    Returns:
        The profile once it is complete.
    """
    try:
        num_images = dataset.split_counts.get(TRAIN, 0) if config.auto else None
        setup = set_up(config, num_images)
        request = ProfileRequest(setup, dataset)
        forecast = _describe_forecast(request)
    except FinetuneError as error:
        st.caption(escape_markdown(f"No profile: {error}"))
        return None
    reason = why_not_timed()
    found: Profile | None = offer(
        LABEL,
        profile_key(dataset.fingerprint, config.backbone),
        _TEXT,
        _make_work(request),
        button_key=button_key,
        icon=":material/layers:",
        disabled=disabled or reason is not None,
        help=reason
        or "Trains each stage alone, and says which ones gain over a linear probe. Its runs are "
        f"ordinary runs; finished ones are used again. {forecast}",
    )
    if found:
        st.success(escape_markdown(found.sentence), icon=":material/layers:")
    return found


def _make_work(request: ProfileRequest) -> Callable[[], Work[Profile]]:
    """Return a function that makes the work, which does not use Streamlit."""
    runs, queue, name = store(), worker(), owner()

    def train(progress: Progress) -> Work[None]:
        return train_in_queue(progress, queue, runs, name)

    return partial(profile, request, runs, train, SpeedBook())


def _describe_forecast(request: ProfileRequest) -> str:
    count = count_runs(request.setup, FinishedRuns(store(), request.dataset))
    if not count:
        return "All of its runs are finished."
    seconds = forecast_seconds(request, store(), SpeedBook())
    runs = f"about {pluralize(count, 'run')}"
    return f"Forecast: {runs}, {format_duration(seconds)}." if seconds else f"Forecast: {runs}."
