"""The ``advise`` command: probe networks on a data set and recommend two to fine-tune."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape

from finetune_core.commands.input import load_app_split, unpack_data
from finetune_core.commands.terminal import err, out, print_table, progress_bar, show_work
from finetune_core.config import make_config
from finetune_core.data.dataset import index_dataset
from finetune_core.data.edits import load_edits, select_effective_edits
from finetune_core.evaluation.advice.advise import UNKNOWN, Advice, advise
from finetune_core.models.catalogue import list_ready_backbones
from finetune_core.work import with_phase


def build_advice(
    data: str,
    backbones: Sequence[str],
    settings: Mapping[str, Any],
    images: int,
    budget: float,
    *,
    as_is: bool,
) -> Advice:
    """Probe the named networks, or all whose weights are on this machine.

    Args:
        data: the data set, as a person names it.
        backbones: the networks to probe. Empty: all whose weights are on this machine.
        settings: settings of the forecast runs, or the text typed for them.
        images: maximum number of training images to probe with, in proportion to the classes.
        budget: minutes that fine-tuning one network may take.
        as_is: leave out the changes and the split made for this data set in the app.

    Raises:
        FinetuneError: if the data or a setting cannot be used.
    """
    folder = unpack_data(data)
    edits = () if as_is else select_effective_edits(load_edits(folder))
    base = make_config(
        load_app_split(folder, as_is) | dict(settings) | {"data": folder, "edits": edits}
    )
    with progress_bar() as bar:
        indexing = index_dataset(folder, **base.split_settings, edits=base.edits)
        dataset = show_work(bar, with_phase("index", indexing))
        own_sizes = "image_size" not in settings
        return show_work(
            bar,
            advise(
                dataset,
                base,
                backbones or list_ready_backbones(),
                images,
                budget,
                own_sizes=own_sizes,
            ),
        )


def print_advice(advice: Advice) -> None:
    """Print the ranking, the proposal, and what no probe can tell. Failures go to stderr."""
    if advice.candidates:
        out.print(escape(advice.to_text()))
        print_table(*advice.network_rows(), names=2)
        out.print("Forecast of a run:")
        print_table(*advice.forecast_rows())
        for number, suggestion in enumerate(advice.suggested, 1):
            out.print(
                f"{number}. [bold]{escape(suggestion.backbone)}[/bold]: {escape(suggestion.reason)}"
            )
        out.print(escape(UNKNOWN))
    for failed in advice.failed:
        err.print(escape(f"{failed.backbone} was left out: {failed.reason}"))
