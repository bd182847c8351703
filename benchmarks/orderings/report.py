"""Results of an ordering, as Markdown and as plain values."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.orderings.judging import Judgement, Standing, combine_outcomes
from benchmarks.orderings.protocol import Ordering, Where
from finetune_core.formatting import format_percent, format_points

_AXES = {"test": "test images", "shifted": "shifted test images"}


@dataclass(frozen=True)
class Result:
    """Result of an ordering.

    Attributes:
        ordering: the ordering.
        where: ``online`` or ``offline``.
        seeds: number of seeds.
        judged: the claims with their outcomes.
        standings: scores of the arms. Empty if the ordering could not be tested.
    """

    ordering: Ordering
    where: Where
    seeds: int
    judged: Sequence[Judgement]
    standings: Sequence[Standing] = ()

    @property
    def why(self) -> str:
        """The reason why claims could not be tested. Empty if they were."""
        return " ".join(dict.fromkeys(one.why for one in self.judged if one.why)) or (
            self.ordering.setup(self.where).why_not if not self.judged else ""
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values. ``low`` and ``high`` are the ends of 95 % intervals, as shares."""
        ordering, setup = self.ordering, self.ordering.setup(self.where)
        return {
            "name": ordering.name,
            "authors": ordering.authors,
            "year": ordering.year,
            "claim": ordering.claim,
            "departures": list(ordering.departures),
            "measure": ordering.measure,
            "where": self.where,
            "setup": setup.model_dump(),
            "seeds": self.seeds,
            "outcome": combine_outcomes(self.judged),
            "why": self.why,
            "claims": [
                one.claim.model_dump()
                | {"outcome": one.outcome, "p": one.p, "why": one.why}
                | _collect_numbers(one)
                for one in self.judged
            ],
            "arms": [asdict(one) for one in self.standings],
        }

    def to_text(self) -> str:
        """Return the result as Markdown."""
        ordering, setup = self.ordering, self.ordering.setup(self.where)
        lines = [
            f"## {ordering.name}: {combine_outcomes(self.judged)}",
            "",
            f"{ordering.authors} {ordering.year}: {ordering.claim}",
            "",
        ]
        if not self.standings:
            return "\n".join([*lines, f"Could not be tested ({self.where}): {self.why}", ""])
        images = setup.images
        lines += [
            f"{setup.data}, {setup.backbone}, {images.train} training, {images.val} validation "
            f"and {images.test} test images, {self.seeds} seeds.",
            "",
            "| arm | on | mean, 95 % interval | seed by seed |",
            "|---|---|---|---|",
            *(_format_standing(one) for one in self.standings),
            "",
            "| claim | on | published | difference, 95 % interval (points) | p (Holm) | outcome |",
            "|---|---|---|---|---|---|",
            *(_format_claim(one) for one in self.judged),
            "",
        ]
        return "\n".join(lines)


def _format_standing(one: Standing) -> str:
    score, seeds = one.score, " ".join(f"{100 * value:.1f}" for value in one.seeds)
    return (
        f"| {one.arm} | {_AXES[one.on]} | {format_percent(score.value)}, "
        f"{format_percent(score.low)} to {format_percent(score.high)} | {seeds} |"
    )


def _format_claim(one: Judgement) -> str:
    text = one.why
    if found := one.difference:
        text = (
            f"{format_points(found.value)}, {format_points(found.low)} to "
            f"{format_points(found.high)}"
        )
    p = "" if one.p is None else f"{one.p:.2g}"
    return (
        f"| {one.claim.text} | {_AXES[one.claim.on]} | {one.claim.published} | {text} | {p} | "
        f"**{one.outcome}** |"
    )


def _collect_numbers(one: Judgement) -> dict[str, float | None]:
    difference = one.difference
    return {
        name: getattr(difference, part) if difference else None
        for name, part in (("difference", "value"), ("low", "low"), ("high", "high"))
    }
