"""Advice before training: probe networks on the same images, rank them, propose two to fine-tune.

Every network is probed at every stage.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from finetune_core.config import RunConfig
from finetune_core.data.dataset import Dataset, assign_units
from finetune_core.errors import ConfigError, FinetuneError, explain_memory_errors
from finetune_core.evaluation.advice.probes import (
    TIMED,
    NetworkProbes,
    make_run_config,
    probe_network,
    sample_training_images,
)
from finetune_core.evaluation.advice.proposal import Proposal, propose_networks
from finetune_core.evaluation.advice.ranking import Candidate, best_stages, rank_candidates
from finetune_core.formatting import format_duration, format_number, format_percent, pluralize
from finetune_core.markup import paragraphs, table
from finetune_core.runs.design import design_runs
from finetune_core.training.heads.logistic import MOST_CHOSEN_ON, split_probe_folds
from finetune_core.training.prepare import check_classes
from finetune_core.training.strategies.catalogue import BASELINE, STRATEGIES
from finetune_core.work import Work, with_subject

IMAGES, BUDGET = 2_000, 30.0  # images, minutes
FEWEST, MOST = 20, MOST_CHOSEN_ON  # limits of the number of images
UNKNOWN = (
    "A probe measures the pretrained features as they are. It cannot predict how much fine-tuning "
    "will add, which differs from network to network; only training shows that."
)


_COLUMNS = ["Network", "Stage", "Probe", "95 % interval", "Against the best"]


@dataclass(frozen=True)
class Failed:
    """A network that could not be probed, with the reason."""

    backbone: str
    reason: str


@dataclass(frozen=True)
class Advice:
    """Ranking of the probed networks, with proposals of what to fine-tune.

    Attributes:
        images: number of training images that were drawn, at most as many as were asked for.
        folds: number of folds of the cross-validation.
        budget: minutes that fine-tuning one network may take.
        candidates: every stage of every network, the best first.
        networks: measurements of each network, in the order in which the networks were named.
        suggested: networks to fine-tune.
        failed: networks that could not be probed.
    """

    images: int
    folds: int
    budget: float
    candidates: tuple[Candidate, ...]
    networks: tuple[NetworkProbes, ...]
    suggested: tuple[Proposal, ...]
    failed: tuple[Failed, ...]

    def to_text(self) -> str:
        """Describe in sentences what was measured."""
        images = self.candidates[0].images if self.candidates else self.images
        groups = self.candidates[0].groups if self.candidates else images
        copies = (
            f" Near-duplicates and groups count once: {format_number(groups)} of "
            f"{format_number(images)} images."
            if groups < images
            else ""
        )
        return (
            f"Linear probes on the frozen features of {pluralize(len(self.networks), 'network')}, "
            f"cross-validated in {self.folds} folds of {pluralize(self.images, 'training image')}; "
            f"validation and test images are not used.{copies} The 95 % intervals hold for all "
            "stages together, the best one included."
        )

    def network_rows(self) -> tuple[list[str], list[list[str]]]:
        """Return (columns, rows) with one row per network, by its best stage, the best first."""
        top1 = {
            network.backbone: "not stated" if network.top1 is None else f"{network.top1:.1f} %"
            for network in self.networks
        }
        rows = [
            [*_row(index, candidate), top1[candidate.backbone]]
            for index, candidate in enumerate(best_stages(self.candidates))
        ]
        return [*_COLUMNS, "ImageNet"], rows

    def forecast_rows(self) -> tuple[list[str], list[list[str]]]:
        """Return (columns, rows) with one row per network: forecasts of the usual strategies."""
        known = {network.backbone: network.forecasts for network in self.networks}
        rows = [
            [
                candidate.backbone,
                *(_format_seconds(known[candidate.backbone].get(strategy)) for strategy in TIMED),
            ]
            for candidate in best_stages(self.candidates)
        ]
        return ["Network", *(STRATEGIES[strategy].title for strategy in TIMED)], rows

    def stage_rows(self) -> tuple[list[str], list[list[str]]]:
        """Return (columns, rows) with one row per network and stage, the best first."""
        rows = [
            [*_row(index, candidate), _format_seconds(candidate.seconds)]
            for index, candidate in enumerate(self.candidates)
        ]
        return [*_COLUMNS, "Training what follows"], rows

    def __repr__(self) -> str:
        return f"<Advice: {', '.join(proposal.backbone for proposal in self.suggested) or 'none'}>"

    def _repr_html_(self) -> str:
        reasons = [f"{proposal.backbone}: {proposal.reason}" for proposal in self.suggested]
        lacking = [f"{failure.backbone}: {failure.reason}" for failure in self.failed]
        return (
            table(*self.network_rows())
            + table(*self.forecast_rows())
            + paragraphs(*reasons, *lacking, self.to_text(), UNKNOWN)
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as ``advise --json`` prints them."""
        return {
            "images": self.images,
            "folds": self.folds,
            "budget_minutes": self.budget,
            "candidates": [asdict(candidate) for candidate in self.candidates],
            "networks": [
                {
                    "backbone": network.backbone,
                    "imagenet_top1": network.top1,
                    "forecast_seconds": dict(network.forecasts),
                }
                for network in self.networks
            ],
            "suggested": [asdict(proposal) for proposal in self.suggested],
            "failed": [asdict(failure) for failure in self.failed],
            "cannot_predict": UNKNOWN,
        }


def advise(
    dataset: Dataset,
    base: RunConfig,
    backbones: Iterable[str],
    images: int = IMAGES,
    budget: float = BUDGET,
    *,
    own_sizes: bool = True,
) -> Work[Advice]:
    """Probe networks on the same training images, rank their stages, and propose two networks.

    A network that fails is reported with its reason; the others go on.

    Args:
        dataset: the data set; only its training images are used.
        base: the settings of the runs that are forecast and proposed.
        backbones: names of the networks.
        images: maximum number of training images to probe with, sampled in proportion to the
            classes.
        budget: minutes that fine-tuning one network may take.
        own_sizes: resize images to the size that each network was pretrained on instead of the size
            in ``base``.

    Yields:
        Steps of the phases of ``probe_network``, each with its network as the subject.

    Raises:
        ConfigError: if ``images`` or ``budget`` cannot be used, or no network is named.
        DataError: if there are too few images to cross-validate.
    """
    names = list(dict.fromkeys(backbones))
    _check_arguments(names, images, budget)
    check_classes(dataset)
    sample = sample_training_images(dataset, images, base.seed)
    folds = split_probe_folds(
        sample.table["label"].to_numpy(), assign_units(sample.table), base.seed
    )
    networks: list[NetworkProbes] = []
    failed: list[Failed] = []
    for place, name in enumerate(names, 1):
        subject = f"{name} ({place} of {len(names)})" if len(names) > 1 else name
        try:
            probing = probe_network(name, base, dataset, sample, own_size=own_sizes)
            with explain_memory_errors():
                networks.append((yield from with_subject(subject, probing)))
        except ConfigError as error:
            failed.append(Failed(name, ". ".join(error.problems.values())))
        except FinetuneError as error:
            failed.append(Failed(name, str(error)))
    candidates = rank_candidates(networks)
    suggested = propose_networks(candidates, networks, 60 * budget)
    return Advice(
        len(sample.table), len(folds), budget, candidates, tuple(networks), suggested, tuple(failed)
    )


def make_comparison_configs(
    suggested: Sequence[Proposal],
    base: RunConfig,
    seeds: Sequence[int],
    num_images: int | None = None,
) -> list[RunConfig]:
    """Return configs of runs that compare the proposals with each other and with linear probes.

    Each proposal is paired with the linear probe on its own features.

    Args:
        suggested: the proposals.
        base: all other settings.
        seeds: one run per strategy and seed.
        num_images: number of training images, passed on to ``design_runs``.

    Raises:
        ConfigError: if a config cannot be used.
    """
    configs: list[RunConfig] = []
    for proposal in suggested:
        own = make_run_config(base, proposal.backbone, proposal.image_size, proposal.strategy)
        configs += design_runs(own, [proposal.strategy, BASELINE], seeds, num_images=num_images)
    return configs


def _check_arguments(names: Sequence[str], images: int, budget: float) -> None:
    problems = {}
    if not names:
        problems["backbones"] = "name at least one; none has its weights on this machine"
    if not FEWEST <= images <= MOST:
        problems["images"] = (
            f"must be {format_number(FEWEST)} to {format_number(MOST)}, not {format_number(images)}"
        )
    if not 0 < budget < float("inf"):
        problems["budget"] = f"must be minutes, more than 0, not {budget:g}"
    if problems:
        raise ConfigError(problems)


def _row(index: int, candidate: Candidate) -> list[str]:
    """Return the cells of ``_COLUMNS``.

    Args:
        index: place of the candidate in the ranking; 0 is the best.
        candidate: the candidate.
    """
    standing = (
        "not distinguishable"
        if candidate.like_best
        else f"{candidate.behind * 100:.1f} points behind"
    )
    return [
        candidate.backbone,
        candidate.stage,
        format_percent(candidate.accuracy),
        candidate.interval,
        standing if index else "best",
    ]


def _format_seconds(forecast: float | None) -> str:
    return "not timed" if forecast is None else format_duration(forecast)
