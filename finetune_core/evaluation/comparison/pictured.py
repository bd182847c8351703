"""What the two networks that matter most looked at in the images on which they disagree: pictures for a report."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from finetune_core.errors import FinetuneError
from finetune_core.evaluation.comparison.compare import Comparison
from finetune_core.evaluation.comparison.disagree import disagreement
from finetune_core.evaluation.prediction.explain import explain
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.evaluation.run_images import run_image
from finetune_core.formatting import percent

_MOST = 6  # images: each takes a moment


@dataclass(frozen=True)
class Pictured:
    """One image.

    Attributes:
        title: its class and its name.
        pictures: (JPEG, words below it): the image, then what each network looked at.
    """

    title: str
    pictures: tuple[tuple[bytes, str], ...]


def pictured(comparison: Comparison, roots: Sequence[Path] = ()) -> tuple[Pictured, ...]:
    """Of the arm to take and the one that comes next: the clearest cases of either side in turn. None where the images or the networks
    are not there any more, or where the images lie outside ``roots``, when given."""
    arms = [comparison.arms[at] for at in comparison.order[:2]]
    if len(arms) < 2:
        return ()
    runs = [arm.members[0].run for arm in arms]
    found = []
    try:
        disagreed = disagreement(*runs)
        networks = [load_predictor(run) for run in runs]
        sides = (
            rows.head(_MOST).to_dict("records") for rows in (disagreed.only_a, disagreed.only_b)
        )
        rows = [row for pair in zip_longest(*sides) for row in pair if row][:_MOST]
        for row in rows:
            image, predicted = (
                run_image(runs[0], row["id"], roots),
                [int(row["predicted_a"]), int(row["predicted_b"])],
            )
            seen = [
                explain(network, image, (name,))
                for network, name in zip(networks, predicted, strict=True)
            ]
            said = [
                f"{'✓' if name == row['label'] else '✗'} {arm.title}: {disagreed.classes[name]} "
                f"({percent(row[confidence], 0)})"
                for arm, name, confidence in zip(
                    arms, predicted, ("confidence_a", "confidence_b"), strict=True
                )
            ]
            maps = [
                (one.overlays[name], words)
                for one, name, words in zip(seen, predicted, said, strict=True)
            ]
            found.append(
                Pictured(
                    f"{disagreed.classes[row['label']]} · {row['id']}",
                    ((seen[0].picture, "network input"), *maps),
                )
            )
    except FinetuneError:  # what was compared is worth a report without them
        return ()
    return tuple(found)
