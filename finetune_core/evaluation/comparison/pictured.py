"""Grad-CAM pictures for a report: images on which the two most important networks disagree."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from finetune_core.errors import FinetuneError
from finetune_core.evaluation.comparison.compare import Comparison
from finetune_core.evaluation.comparison.disagree import find_disagreements
from finetune_core.evaluation.prediction.explain import explain
from finetune_core.evaluation.prediction.predictor import load_predictor
from finetune_core.evaluation.run_images import resolve_run_image
from finetune_core.formatting import format_percent

_MOST = 6  # images, each of which takes a moment


@dataclass(frozen=True)
class ExplainedImage:
    """One image with its pictures.

    Attributes:
        title: class and name of the image.
        pictures: (JPEG, caption): the image, then the Grad-CAM of each network.
    """

    title: str
    pictures: tuple[tuple[bytes, str], ...]


def explain_disagreements(
    comparison: Comparison, roots: Sequence[Path] = ()
) -> tuple[ExplainedImage, ...]:
    """Explain the clearest disagreements between the advised arm and the next one.

    The two sides alternate. The result is empty if images or networks are missing, or if the images
    lie outside of ``roots``.

    Args:
        comparison: the comparison.
        roots: if given, images outside of these folders are refused.
    """
    arms = [comparison.arms[index] for index in comparison.order[:2]]
    if len(arms) < 2:
        return ()
    runs = [arm.members[0].run for arm in arms]
    images = []
    try:
        disagreements = find_disagreements(*runs)
        networks = [load_predictor(run) for run in runs]
        sides = (
            rows.head(_MOST).to_dict("records")
            for rows in (disagreements.only_a, disagreements.only_b)
        )
        rows = [row for pair in zip_longest(*sides) for row in pair if row][:_MOST]
        for row in rows:
            image, predicted = (
                resolve_run_image(runs[0], row["id"], roots),
                [int(row["predicted_a"]), int(row["predicted_b"])],
            )
            explanations = [
                explain(network, image, (name,))
                for network, name in zip(networks, predicted, strict=True)
            ]
            captions = [
                f"{'✓' if name == row['label'] else '✗'} {arm.title}: "
                f"{disagreements.classes[name]} ({format_percent(row[confidence], 0)})"
                for arm, name, confidence in zip(
                    arms, predicted, ("confidence_a", "confidence_b"), strict=True
                )
            ]
            maps = [
                (explanation.overlays[name], caption)
                for explanation, name, caption in zip(
                    explanations, predicted, captions, strict=True
                )
            ]
            images.append(
                ExplainedImage(
                    f"{disagreements.classes[row['label']]} · {row['id']}",
                    ((explanations[0].picture, "network input"), *maps),
                )
            )
    except FinetuneError:  # the comparison is worth a report without pictures
        return ()
    return tuple(images)
