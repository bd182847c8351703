"""Runs whose weights are averaged from other runs instead of trained: soups and WiSE-FT.

Both are from Wortsman et al. 2022.
"""

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch.nn.functional import cross_entropy

from finetune_core.data.splits import TRAIN, VAL
from finetune_core.training.averaging.batchnorm import recompute_statistics
from finetune_core.training.averaging.shifted_images import ShiftedImages, read_shifted_images
from finetune_core.training.checkpoints.files import restore_tensors
from finetune_core.training.checkpoints.networks import describe_ancestor
from finetune_core.training.checkpoints.parents import (
    Parent,
    check_unchanged,
    read_matching_parents,
)
from finetune_core.training.evaluation import predict_splits
from finetune_core.training.events import (
    Event,
    Ingredient,
    Mixture,
    Progress,
    ShiftedCurve,
    WeightsAveraged,
)
from finetune_core.training.footprint import measure_stepless_footprint
from finetune_core.training.heads.fitting import fit_probe
from finetune_core.training.job import Job
from finetune_core.training.lost import LostImages

State = Mapping[str, torch.Tensor]
Value = TypeVar("Value")

# Of WiSE-FT: 0 is the start, 1 the fine-tuned network.
COEFFICIENTS = tuple(tenth / 10 for tenth in range(11))


def average_states(states: Sequence[State]) -> dict[str, torch.Tensor]:
    """Return the mean of each tensor, computed in float64.

    The mean of equal tensors is equal bit for bit, and the order of the states makes no difference.
    Counters (int64, as ``num_batches_tracked``) take the largest value.
    """
    return {name: _average_tensor([state[name] for state in states]) for name in states[0]}


def _average_tensor(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    stacked = torch.stack(list(tensors))
    if not stacked.is_floating_point():
        return stacked.amax(0)
    # Sorted, because a floating-point sum depends on the order of its terms.
    ordered = stacked.double().sort(dim=0).values
    total = ordered[0]
    for term in ordered[1:]:
        total = total + term
    return (total / len(tensors)).to(stacked.dtype)


def interpolate_states(start: State, end: State, coefficient: float) -> dict[str, torch.Tensor]:
    """Return ``(1 - coefficient) · start + coefficient · end``, computed in float64.

    Counters are those of ``end``.
    """
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
    """Put the average into the job's network. A run that is stopped in here starts again.

    Args:
        job: The job whose config names the runs to average.
        lost: Lost images that the run has reported so far.
        roots: When given, images of other data sets outside these folders are not read.

    Raises:
        FinetuneError: If a run to average is gone, damaged or does not fit the others, or if too
            many images are lost.
    """
    start_time, averaged = time.monotonic(), job.config.averaged
    if averaged is None:
        raise ValueError("the config names no runs to average")
    parents = read_matching_parents(averaged)
    check_unchanged(job.dataset, [one.folder.name for one in parents], parents)
    trials = _Trials(job, lost)
    states = [parent.load_tensors(list(trials.copy_tensors())) for parent in parents]
    match averaged.how:
        case "soup":
            averages = yield from _make_soup(trials, states)
        case "greedy_soup":
            averages = yield from _make_greedy_soup(trials, parents, states)
        case "wise":
            shifted = yield from read_shifted_images(job, parents[0].folder, roots)
            averages = yield from _make_wise(trials, states[0], shifted)
    memory = measure_stepless_footprint(
        job, [tensor for state in states for tensor in state.values()]
    )
    yield replace(
        averages,
        parents=[describe_ancestor(one.folder, one.config, one.info) for one in parents],
        seconds=time.monotonic() - start_time,
        memory_bytes=memory.host,
        device_bytes=memory.device,
    )


def _make_soup(
    trials: "_Trials", states: Sequence[State]
) -> Generator[Event, None, WeightsAveraged]:
    """Average all networks (uniform soup)."""
    trials.total = trials.num_train
    layers = yield from trials.load_average(average_states(states))
    return WeightsAveraged("soup", [], 0.0, layers)


def _make_greedy_soup(
    trials: "_Trials", parents: Sequence[Parent], states: Sequence[State]
) -> Generator[Event, None, WeightsAveraged]:
    """Try each network in the soup, the most accurate first, and keep those that cost no accuracy.

    The first is kept in any case.
    """
    trials.total = len(states) * trials.num_val + (len(states) - 1) * (
        trials.num_train + trials.num_val
    )
    accuracies = []
    for state in states:
        trials.load(state)
        accuracy, _ = yield from trials.evaluate()
        accuracies.append(accuracy)
    order = sorted(
        range(len(states)), key=lambda index: (-accuracies[index], str(parents[index].folder))
    )
    members, highest, best, layers = order[:1], accuracies[order[0]], states[order[0]], 0
    ingredients = [Ingredient(run=parents[order[0]].folder.name, accuracy=highest, kept=True)]
    for index in order[1:]:
        num_layers = yield from trials.load_average(
            average_states([states[i] for i in (*members, index)])
        )
        accuracy, _ = yield from trials.evaluate()
        kept = accuracy >= highest
        ingredients.append(Ingredient(run=parents[index].folder.name, accuracy=accuracy, kept=kept))
        if kept:
            members, highest, best, layers = (
                [*members, index],
                accuracy,
                trials.copy_tensors(),
                num_layers,
            )
    trials.load(best)
    return WeightsAveraged("greedy_soup", [], 0.0, layers, ingredients=ingredients)


def _make_wise(
    trials: "_Trials", tuned: State, shifted: Sequence[ShiftedImages]
) -> Generator[Event, None, WeightsAveraged]:
    """Mix the start with its linear probe and the fine-tuned network (WiSE-FT).

    The first of the most accurate mixtures is kept. BatchNorm statistics are mixed as weights are:
    the linear probe was fitted to features made with the start's own. The accuracy on other data
    sets is recorded as a curve, too, but validation images alone decide. With LoRA the mixture of
    merged weights is ``(1 - c) W0 + c (W0 + scale · B A)``, which keeps its rank.
    """
    trials.total = len(COEFFICIENTS) * trials.num_val
    yield from fit_probe(trials.job, trials.lost, trials.job.config.seed)
    start = trials.copy_tensors() | trials.job.low_rank.initial_factors(tuned)
    curve: list[Mixture] = []
    curves = [
        ShiftedCurve(data=one.data, images=len(one.labels), curve=[], problem=one.problem)
        for one in shifted
    ]
    for coefficient in COEFFICIENTS:
        trials.load(interpolate_states(start, tuned, coefficient))
        accuracy, loss = yield from trials.evaluate()
        curve.append(Mixture(coefficient=coefficient, accuracy=accuracy, loss=loss))
        for one, other in zip(shifted, curves, strict=True):
            if not one.problem:
                accuracy, loss = one.evaluate(trials.job)
                other["curve"].append(
                    Mixture(coefficient=coefficient, accuracy=accuracy, loss=loss)
                )
    chosen = max(curve, key=lambda one: one["accuracy"])["coefficient"]
    trials.load(interpolate_states(start, tuned, chosen))
    return WeightsAveraged("wise", [], 0.0, curve=curve, coefficient=chosen, shifted=curves)


@dataclass
class _Trials:
    """Weights tried in the job's network, one after the other, on the validation images.

    Attributes:
        done: Images that have gone through the network.
        total: Images that will have gone through it at the end.
    """

    job: Job
    lost: LostImages
    done: int = 0
    total: int = 0

    @property
    def num_train(self) -> int:
        """Number of images that BatchNorm statistics are computed on."""
        return len(self.job.rows[TRAIN])

    @property
    def num_val(self) -> int:
        return len(self.job.rows[VAL])

    def copy_tensors(self) -> dict[str, torch.Tensor]:
        """Return a copy of all tensors that the run may change, on the processor."""
        return {
            name: tensor.detach().cpu().clone()
            for name, tensor in self.job.changing_tensors().items()
        }

    def load(self, state: State) -> None:
        """Put a state of these tensors into the network and merge LoRA's factors."""
        restore_tensors(self.job.changing_tensors(), state)
        self.job.low_rank.merge()

    def load_average(self, average: State) -> Generator[Event, None, int]:
        """Put averaged weights into the network and recompute its BatchNorm statistics.

        Returns:
            The number of BatchNorm layers that were recomputed.
        """
        self.load(average)
        layers = yield from self._count_progress(
            recompute_statistics(self.job, self.lost), self.num_train
        )
        return layers

    def evaluate(self) -> Generator[Event, None, tuple[float, float]]:
        """Return the network's accuracy on the validation images, and its loss.

        Accuracy is 0…1, the loss is the mean cross-entropy in nats.
        """
        predicting = predict_splits(self.job, [VAL], "average", self.lost)
        rows, logits = yield from self._count_progress(predicting, self.num_val)
        labels = self.job.labels[rows]
        loss = cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels)).item()
        return float((logits.argmax(1) == labels).mean()), loss

    def _count_progress(
        self, work: Generator[Event, None, Value], images: int
    ) -> Generator[Event, None, Value]:
        """Report the progress of a part of the work as progress of the whole."""
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
