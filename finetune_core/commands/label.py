"""The ``label`` command: add unlabelled images, store answers, and list images to label."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from finetune_core.commands.input import load_app_split, unpack_data
from finetune_core.commands.terminal import out, print_table, progress_bar, show_work
from finetune_core.config import make_config
from finetune_core.data.dataset import index_dataset
from finetune_core.data.edits import load_edits
from finetune_core.formatting import format_percent, pluralize
from finetune_core.labelling.answers import read_answers, save_answers
from finetune_core.labelling.pool import add_images, load_unlabelled
from finetune_core.labelling.session import Labels, prepare_labelling
from finetune_core.models.catalogue import PACKAGED, default_image_size
from finetune_core.work import finish, with_phase

_MAX_PRINTED = 20  # images


@dataclass(frozen=True)
class LabelQueue:
    """The images of a data set that wait for a label, in the order to label them in.

    Attributes:
        order: a key of ``ORDERS``.
        of: the image or class that the order refers to.
        classes: classes of the data set and of new labels.
        rows: columns ``id, split, proposal, share``: the split that the image joins once it has a
            label, and the linear probe's class with its probability. Images for testing have no
            proposal.
        labels: the labels so far.
        accuracy: accuracy of the linear probe on the validation images. None without validation
            images.
    """

    order: str
    of: str
    classes: tuple[str, ...]
    rows: pd.DataFrame
    labels: Labels
    accuracy: float | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as ``label --json`` prints them."""
        return {
            "order": self.order,
            "of": self.of,
            "classes": list(self.classes),
            "labelled": self.labels.count,
            "waiting": int(self.labels.waiting.sum()),
            "skipped": self.labels.skipped,
            "none_of_these": self.labels.none,
            "accuracy": self.accuracy,
            "queue": [
                {key: None if pd.isna(value) else value for key, value in row.items()}
                for row in self.rows.to_dict(orient="records")
            ],
        }


def label_queue(
    data: str,
    *,
    add: str | None,
    set_aside: bool,
    answer: Path | None,
    order: str,
    of: str,
    backbone: str | None,
    most: int | None,
) -> LabelQueue:
    """Add unlabelled images, store answers, and order the images that wait for a label.

    Args:
        data: the data set, as a person names it.
        add: a folder or an archive of images to add, if any.
        set_aside: whether a random tenth is labelled first, for testing.
        answer: a file of answers, if any (see ``read_answers``).
        order: a key of ``ORDERS``.
        of: the image or class that the order refers to.
        backbone: backbone of the embeddings. None: the packaged one.
        most: maximum number of listed images. None: all.

    Raises:
        FinetuneError: if data or weights are not available, nothing is left to label, or an answer
            is invalid. In that case no answer is stored.
    """
    answers = read_answers(answer) if answer is not None else []
    folder = unpack_data(data)
    config = make_config(load_app_split(folder, as_is=False) | {"data": folder})
    edits, name = load_edits(folder), backbone or PACKAGED
    with progress_bar() as bar:
        if add is not None:
            show_work(bar, with_phase("unpack", add_images(folder, add, set_aside=set_aside)))
        unlabelled = load_unlabelled(folder)
        indexing = index_dataset(folder, **config.split_settings, edits=edits)
        dataset = show_work(bar, with_phase("index", indexing))
        size = default_image_size(name)
        labelling = show_work(bar, prepare_labelling(dataset, unlabelled, name, size))
    if answers:
        save_answers(folder, labelling.split_of, answers)
        edits = load_edits(folder)
    ranking = finish(labelling.rank(labelling.get_labels(edits), order, of))
    asked = ranking.rows[:most]
    rows = labelling.pool.loc[asked, ["id", "split"]].reset_index(drop=True)
    rows["proposal"], rows["share"] = labelling.propose_labels(ranking.probe, asked)
    classes = labelling.list_classes(ranking.labels)
    return LabelQueue(order, of, classes, rows, ranking.labels, ranking.probe.accuracy)


def print_queue(queue: LabelQueue) -> None:
    """Print the number of waiting images, and the first of them."""
    labels, waiting = queue.labels, int(queue.labels.waiting.sum())
    out.print(f"{pluralize(waiting, 'image')} to label, {labels.count} labelled.")
    if queue.accuracy is not None:
        out.print(f"Linear probe: {format_percent(queue.accuracy)} of the validation images.")
    shown = queue.rows.head(_MAX_PRINTED)
    rows = [
        [str(row["id"]), str(row["split"]), row["proposal"] or "", _format_share(row["share"])]
        for row in shown.to_dict(orient="records")
    ]
    print_table(["Image", "Joins", "Proposed", "Probability"], rows)
    if len(queue.rows) > len(shown):
        out.print(f"… and {pluralize(len(queue.rows) - len(shown), 'more image')}.")


def _format_share(share: float | None) -> str:
    return "" if share is None or pd.isna(share) else format_percent(share)
