"""Reference points for a run's accuracy on the same images.

- Majority class: the share of the images that belong to the most frequent class of the training
  images. A classifier that ignores its input reaches this accuracy.
- Linear probe: a finished run on the same features of the same training images. Among several seeds
  the run's own seed comes first, then the newest.
- Best run: the finished run with the best validation accuracy (``best_run``).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_core.evaluation.run_accuracy import best_run, run_accuracy, split_accuracy
from finetune_core.formatting import SPLIT_TITLES, format_percent, lower_first
from finetune_core.runs.design import features_key, is_baseline
from finetune_core.runs.store import Run, RunStore
from finetune_core.training.strategies.catalogue import describe_run_kind


@dataclass(frozen=True)
class Reference:
    """An accuracy on the same images.

    Attributes:
        value: the accuracy.
        title: for a run, its training method as text for the middle of a sentence.
        run_id: None for the majority class.
    """

    value: float
    title: str = ""
    run_id: str | None = None


@dataclass(frozen=True)
class ReferencePoints:
    """Accuracies to compare a run's accuracy with; None where unknown.

    Attributes:
        split: ``test`` or ``val``: the split whose images are counted.
        majority_class: None for runs of earlier versions, which did not record it.
        linear_probe: None also if the run is a linear probe.
        best_run: None if the run itself is the best.
    """

    split: str
    majority_class: Reference | None = None
    linear_probe: Reference | None = None
    best_run: Reference | None = None

    def items(self) -> dict[str, Reference]:
        """Return the known reference points by label.

        A best run that is the linear probe is listed once.
        """
        probe, best = self.linear_probe, self.best_run
        if probe and best and probe.run_id == best.run_id:
            best = None
        named = {
            "Majority class": self.majority_class,
            "Linear probe": probe,
            "Best by validation": best,
        }
        return {label: point for label, point in named.items() if point}

    def to_text(self) -> str:
        """Return ``majority class 10.2 %, linear probe 95.0 %``; empty if nothing is known."""
        return ", ".join(
            f"{label.lower()}{_format_title(label, point)} {format_percent(point.value)}"
            for label, point in self.items().items()
        )

    def to_sentence(self) -> str:
        """Return the reference points as a sentence; empty if nothing is known."""
        text = self.to_text()
        return f"On the same {SPLIT_TITLES[self.split].lower()} images: {text}." if text else ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values: the split, and for each point ``accuracy, run_id`` or None."""
        known = {
            "majority_class": self.majority_class,
            "linear_probe": self.linear_probe,
            "best_run": self.best_run,
        }
        return {"split": self.split} | {
            name: {"accuracy": point.value, "run_id": point.run_id} if point else None
            for name, point in known.items()
        }


def _format_title(label: str, point: Reference) -> str:
    return f" ({point.title})" if label == "Best by validation" else ""


def reference_points(
    run: Run, runs: Iterable[Run] | None = None, split: str | None = None
) -> ReferencePoints:
    """Return the reference points of a run.

    Args:
        run: the run.
        runs: runs to search for the linear probe and the best run; the runs in the same directory
            if None.
        split: the split to count images of; that of ``run_accuracy`` if None.
    """
    known = run_accuracy(run)
    split = split or (known.split if known else "val")
    others = RunStore(run.run_dir.parent).list_runs() if runs is None else runs
    alike = [other for other in others if is_on_same_images(other, run)]
    best = best_run(alike)
    return ReferencePoints(
        split,
        majority_class(run, split),
        _make_reference(_find_linear_probe(run, alike), run, split),
        _make_reference(best, run, split),
    )


def is_on_same_images(one: Run, other: Run) -> bool:
    """Return whether two runs are evaluated on the same images with the same labels."""
    first, second = (run.history.started or {} for run in (one, other))
    if "fingerprint" not in first or "fingerprint" not in second:
        return False
    counts = [
        (started["fingerprint"], started["counts"]["val"], started["counts"].get("test"))
        for started in (first, second)
    ]
    return counts[0] == counts[1]


def majority_class(run: Run, split: str) -> Reference | None:
    """Return the share of a split's images that belong to the most frequent training class.

    Among equally frequent classes the first one counts, regardless of the split.
    """
    counts = (run.history.started or {}).get("class_counts") or {}
    train, images = counts.get("train"), counts.get(split)
    if not train or not images or len(train) != len(images) or not sum(images):
        return None
    return Reference(images[train.index(max(train))] / sum(images))


def _find_linear_probe(run: Run, alike: Sequence[Run]) -> Run | None:
    if is_baseline(run.config):
        return None
    images = run.history.started["counts"]["train"] if run.history.started else 0
    probes = [
        other
        for other in alike
        if other.status == "finished"
        and is_baseline(other.config)
        and features_key(other.config) == features_key(run.config)
        and other.started["counts"]["train"] == images
    ]
    return max(
        probes, key=lambda other: (other.config.seed == run.config.seed, other.run_id), default=None
    )


def _make_reference(other: Run | None, run: Run, split: str) -> Reference | None:
    if other is None or other.run_id == run.run_id:
        return None
    value = split_accuracy(other, split)
    if value is None:
        return None
    title = lower_first(describe_run_kind(other.config))
    if other.config.backbone != run.config.backbone:
        title += f", {other.config.backbone}"
    return Reference(value, title, other.run_id)
