"""A run whose weights are averaged from those of others, in the place of epochs: soups and WiSE-FT (both Wortsman et al. 2022)."""

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch.nn.functional import cross_entropy

from finetune_core.data.splits import TRAIN, VAL
from finetune_core.training.batchnorm import recompute_statistics
from finetune_core.training.checkpoints import put_back
from finetune_core.training.evaluation import predict_splits
from finetune_core.training.events import (
    Event,
    Ingredient,
    Mixture,
    Progress,
    ShiftedCurve,
    WeightsAveraged,
)
from finetune_core.training.fitting import fit_probe
from finetune_core.training.footprint import footprint_beside
from finetune_core.training.job import Job
from finetune_core.training.lost import LostImages
from finetune_core.training.networks import ancestor
from finetune_core.training.parents import Parent, check_unchanged, checked_parents
from finetune_core.training.shifted_images import ShiftedImages, shifted_images

State = Mapping[str, torch.Tensor]
Value = TypeVar("Value")

# of WiSE-FT: 0 is the start, 1 the fine-tuned network
COEFFICIENTS = tuple(tenth / 10 for tenth in range(11))


def mean_of(states: Sequence[State]) -> dict[str, torch.Tensor]:
    """The mean of each tensor, in float64 before it is rounded: that of equal ones is equal bit for bit, whatever their order.

    What counts (int64, as ``num_batches_tracked``) is the largest of them.
    """
    return {name: _mean([state[name] for state in states]) for name in states[0]}


def _mean(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    stacked = torch.stack(list(tensors))
    if not stacked.is_floating_point():
        return stacked.amax(0)
    ordered = stacked.double().sort(dim=0).values  # sums depend on the order of their terms
    total = ordered[0]
    for term in ordered[1:]:
        total = total + term
    return (total / len(tensors)).to(stacked.dtype)


def mixed(start: State, end: State, coefficient: float) -> dict[str, torch.Tensor]:
    """``(1 - coefficient) · start + coefficient · end``, in float64 before it is rounded; counts are those of ``end``."""
    return {
        name: ((1 - coefficient) * start[name].double() + coefficient * last.double()).to(
            last.dtype
        )
        if last.is_floating_point()
        else last
        for name, last in end.items()
    }


def average_weights(
    job: Job, lost: LostImages, roots: Sequence[Path] = ()
) -> Generator[Event, None, None]:
    """Put the average into the job's network; a run that is stopped in here starts again.

    Args:
        roots: when given, images of other data sets that lie elsewhere are not read.

    Raises:
        FinetuneError: when a run to average is gone, damaged or does not fit the others; when too many images are lost.
    """
    began, averaged = time.monotonic(), job.config.averaged
    if averaged is None:
        raise ValueError("the config names no runs to average")
    parents = checked_parents(averaged)
    check_unchanged(job.dataset, [one.folder.name for one in parents], parents)
    attempts = _Attempts(job, lost)
    states = [parent.tensors(list(attempts.kept_tensors())) for parent in parents]
    match averaged.how:
        case "soup":
            averages = yield from _soup(attempts, states)
        case "greedy_soup":
            averages = yield from _greedy_soup(attempts, parents, states)
        case "wise":
            shifted = yield from shifted_images(job, parents[0].folder, roots)
            averages = yield from _wise(attempts, states[0], shifted)
    memory = footprint_beside(job, [tensor for state in states for tensor in state.values()])
    yield replace(
        averages,
        parents=[ancestor(one.folder, one.config, one.info) for one in parents],
        seconds=time.monotonic() - began,
        memory_bytes=memory.host,
        device_bytes=memory.device,
    )


def _soup(
    attempts: "_Attempts", states: Sequence[State]
) -> Generator[Event, None, WeightsAveraged]:
    """The mean of all."""
    attempts.total = attempts.trained_on
    layers = yield from attempts.put(mean_of(states))
    return WeightsAveraged("soup", [], 0.0, layers)


def _greedy_soup(
    attempts: "_Attempts", parents: Sequence[Parent], states: Sequence[State]
) -> Generator[Event, None, WeightsAveraged]:
    """The best network, and each further one, the more accurate first, with which the mean is not less accurate."""
    attempts.total = len(states) * attempts.judged_on + (len(states) - 1) * (
        attempts.trained_on + attempts.judged_on
    )
    alone = []
    for state in states:
        attempts.load(state)
        accuracy, _ = yield from attempts.judged()
        alone.append(accuracy)
    order = sorted(range(len(states)), key=lambda at: (-alone[at], str(parents[at].folder)))
    members, highest, best, layers = order[:1], alone[order[0]], states[order[0]], 0
    tried = [Ingredient(run=parents[order[0]].folder.name, accuracy=highest, kept=True)]
    for at in order[1:]:
        changed = yield from attempts.put(mean_of([states[i] for i in (*members, at)]))
        accuracy, _ = yield from attempts.judged()
        stays = accuracy >= highest
        tried.append(Ingredient(run=parents[at].folder.name, accuracy=accuracy, kept=stays))
        if stays:
            members, highest, best, layers = (
                [*members, at],
                accuracy,
                attempts.kept_tensors(),
                changed,
            )
    attempts.load(best)
    return WeightsAveraged("greedy_soup", [], 0.0, layers, ingredients=tried)


def _wise(
    attempts: "_Attempts", tuned: State, shifted: Sequence[ShiftedImages]
) -> Generator[Event, None, WeightsAveraged]:
    """From the start with its linear probe to the fine-tuned network; kept is the first of the most accurate on the way.

    BatchNorm statistics are mixed as weights are: the linear probe was fitted to what the start's own make of the images. Of the accuracy on
    other data sets the curve is kept, too; validation images alone decide. With LoRA the mixture of
    merged weights is ``(1 - c) W0 + c (W0 + scale · B A)``, which keeps its rank.
    """
    attempts.total = len(COEFFICIENTS) * attempts.judged_on
    yield from fit_probe(attempts.job, attempts.lost, attempts.job.config.seed)
    start = attempts.kept_tensors() | attempts.job.low_rank.at_start(tuned)
    curve: list[Mixture] = []
    others = [
        ShiftedCurve(data=one.data, images=len(one.labels), curve=[], problem=one.problem)
        for one in shifted
    ]
    for coefficient in COEFFICIENTS:
        attempts.load(mixed(start, tuned, coefficient))
        accuracy, loss = yield from attempts.judged()
        curve.append(Mixture(coefficient=coefficient, accuracy=accuracy, loss=loss))
        for one, other in zip(shifted, others, strict=True):
            if not one.problem:
                accuracy, loss = one.judged(attempts.job)
                other["curve"].append(
                    Mixture(coefficient=coefficient, accuracy=accuracy, loss=loss)
                )
    chosen = max(curve, key=lambda one: one["accuracy"])["coefficient"]
    attempts.load(mixed(start, tuned, chosen))
    return WeightsAveraged("wise", [], 0.0, curve=curve, coefficient=chosen, shifted=others)


@dataclass
class _Attempts:
    """Weights in the job's network, one after the other, judged on the validation images.

    Attributes:
        done, total: images that went through the network, and will have gone.
    """

    job: Job
    lost: LostImages
    done: int = 0
    total: int = 0

    @property
    def trained_on(self) -> int:
        """How many images the BatchNorm statistics are computed on."""
        return len(self.job.rows[TRAIN])

    @property
    def judged_on(self) -> int:
        return len(self.job.rows[VAL])

    def kept_tensors(self) -> dict[str, torch.Tensor]:
        """A copy of all that the run may change, as it is in the network now, on the processor."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.job.changing().items()}

    def load(self, state: State) -> None:
        """Put what the run may change into the network. LoRA's factors are merged."""
        put_back(self.job.changing(), state)
        self.job.low_rank.merge()

    def put(self, average: State) -> Generator[Event, None, int]:
        """Weights that no step has led to; returns how many BatchNorm layers were computed anew for them."""
        self.load(average)
        layers = yield from self._counted(
            recompute_statistics(self.job, self.lost), self.trained_on
        )
        return layers

    def judged(self) -> Generator[Event, None, tuple[float, float]]:
        """Accuracy 0…1 and mean cross-entropy in nats of the network as it is now, on the validation images."""
        predicting = predict_splits(self.job, [VAL], "average", self.lost)
        rows, logits = yield from self._counted(predicting, self.judged_on)
        labels = self.job.labels[rows]
        loss = cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels)).item()
        return float((logits.argmax(1) == labels).mean()), loss

    def _counted(
        self, work: Generator[Event, None, Value], images: int
    ) -> Generator[Event, None, Value]:
        """The events of a part of the work, its progress as that of the whole."""
        try:
            while True:
                event = next(work)
                yield (
                    Progress("average", self.done + event.done, self.total)
                    if isinstance(event, Progress)
                    else event
                )
        except StopIteration as finished:
            self.done += images
            result: Value = finished.value
        finally:
            work.close()
        yield Progress("average", self.done, self.total)
        return result
