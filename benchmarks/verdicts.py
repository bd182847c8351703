"""Error rates and power of a comparison's verdicts, simulated with the code that ships.

    python -m benchmarks.verdicts [--trials N] [--gain X] [--measure NAME]

Most images are easy, a few are hard. Each strategy finds other images hard, and so does each seed.
A seed may also be better or worse altogether (standard deviation ``seed effect``, logits).

The first table shows how often anything is called different although nothing is, with Holm's
correction over all pairs. 5 % is promised. The seeds' variance is pooled over all arms, as in the
product, or estimated for each arm alone. The second table shows how often a strategy that is better
by ``--gain`` logits is called different from at least one other.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.special import expit

from finetune_core.evaluation.comparison.measures import ACCURACY, MEASURES, Measure
from finetune_core.evaluation.comparison.paired import (
    LEVEL,
    ArmPredictions,
    compare_networks,
    holm,
    is_different,
    summarize_accuracy,
    summarize_measure,
)
from finetune_core.evaluation.comparison.strategies import (
    SeedVariance,
    compare_strategies,
    estimate_seed_variances,
)

_BATCH = 50  # trials simulated at a time
_RESAMPLES = 300  # of the bootstrap, if a measure needs one


@dataclass(frozen=True)
class Case:
    """Arms that are equally good except for ``gains``.

    Attributes:
        name: name of the case.
        seeds: number of seeds of each arm.
        effects: standard deviation of the seeds' effect of each arm, in logits.
        images: number of images.
        together: share of the effect's variance that runs with the same seed have in common.
    """

    name: str
    seeds: tuple[int, ...]
    effects: tuple[float, ...]
    images: int = 300
    together: float = 0.0


def draw_arms(
    case: Case, measure: Measure, trials: int, gains: Sequence[float], random: np.random.Generator
) -> list[list[ArmPredictions]]:
    """Simulate the arms of ``trials`` comparisons.

    Returns:
        The answers of each arm, for each trial.
    """
    arms, max_seeds, images = len(case.seeds), max(case.seeds), case.images
    ease = random.normal(3.5, 3, (trials, 1, 1, images)) + random.normal(
        0, 0.7, (trials, arms, 1, images)
    )
    common, own = (
        random.normal(size=(trials, 1, max_seeds, 1)),
        random.normal(size=(trials, arms, max_seeds, 1)),
    )
    effect = np.array(case.effects)[None, :, None, None] * (
        case.together**0.5 * common + (1 - case.together) ** 0.5 * own
    )
    logits = (
        ease
        + np.array(gains)[None, :, None, None]
        + effect
        + random.normal(0, 1, (trials, arms, max_seeds, images))
    )
    if measure is ACCURACY:
        right = random.random(logits.shape) < expit(logits)
        return [
            [summarize_accuracy(right[trial, arm, :seeds]) for arm, seeds in enumerate(case.seeds)]
            for trial in range(trials)
        ]
    # An answer is right if the true class is ahead, which is as likely as above.
    ahead = logits + random.logistic(size=logits.shape)
    return [
        summarize_measure(
            measure,
            *_make_logits(
                [one[:seeds] for one, seeds in zip(trial, case.seeds, strict=True)], random
            ),
            _RESAMPLES,
        )
        for trial in ahead
    ]


def _make_logits(
    ahead: Sequence[np.ndarray], random: np.random.Generator
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return labels and logits of three classes.

    The true class is ahead of a likely wrong class by ``ahead``. The third class is far behind.
    """
    images = np.arange(ahead[0].shape[1])
    labels, likely = random.integers(0, 3, len(images)), random.integers(1, 3, len(images))
    result = []
    for arm in ahead:
        logits = np.full((*arm.shape, 3), -2.0)
        logits[:, images, (labels + likely) % 3] = 0.0
        logits[:, images, labels] = arm
        result.append(logits)
    return labels, result


def find_different(
    arms: Sequence[ArmPredictions], variances: Sequence[SeedVariance | None]
) -> list[bool]:
    """Return which pairs of strategies are called different.

    The rule is that of ``compare_pairs``, without its other results, which take too long here.
    """
    places = list(combinations(range(len(arms)), 2))
    claims = [
        claim
        for a, b in places
        if (claim := compare_strategies(arms[a], arms[b], (variances[a], variances[b])))
    ]
    apart = [
        is_different(claim, p)
        for claim, p in zip(claims, holm([claim.p for claim in claims]), strict=True)
    ]
    if not any(apart):
        return apart
    networks = [compare_networks(arms[a], arms[b]) for a, b in places]
    wider = holm([max(claim.p, other.p) for claim, other in zip(claims, networks, strict=True)])
    narrow = holm([other.p for other in networks])
    return [
        is_different(claim, p) and is_different(other, q)
        for claim, other, p, q in zip(claims, networks, wider, narrow, strict=True)
    ]


def find_different_networks(arms: Sequence[ArmPredictions]) -> list[bool]:
    """Return which pairs of networks are called different."""
    claims = [compare_networks(a, b) for a, b in combinations(arms, 2)]
    return [
        is_different(claim, p)
        for claim, p in zip(claims, holm([claim.p for claim in claims]), strict=True)
    ]


def estimate_own_variances(arms: Sequence[ArmPredictions]) -> list[SeedVariance | None]:
    """Return each arm's variance, estimated from its own seeds only."""
    return [estimate_seed_variances([arm])[0] for arm in arms]


def measure_rates(
    case: Case, measure: Measure, gains: Sequence[float], trials: int, random: np.random.Generator
) -> tuple[float, float, float]:
    """Return how often an arm is called different, pooled and with own variances.

    The arm is the first, or any if all gains are equal. The third number is the standard deviation
    of the seeds' scores.
    """
    counted = [
        0 in pair or len(set(gains)) == 1 for pair in combinations(range(len(case.seeds)), 2)
    ]
    counts, spread = np.zeros(2), 0.0
    for start in range(0, trials, _BATCH):
        for arms in draw_arms(case, measure, min(_BATCH, trials - start), gains, random):
            for column, variances in enumerate(
                (estimate_seed_variances(arms), estimate_own_variances(arms))
            ):
                counts[column] += any(
                    apart and is_counted
                    for apart, is_counted in zip(
                        find_different(arms, variances), counted, strict=True
                    )
                )
            spread += float(np.mean([arm.seed_variance for arm in arms])) ** 0.5
    return (*(counts / trials), spread / trials)


def estimate_error(
    measure: Measure, arms: int, seeds: int, images: int, trials: int, random: np.random.Generator
) -> float:
    """Return how often equally good networks are called different."""
    case, errors = Case("", (seeds,) * arms, (0.0,) * arms, images), 0
    for start in range(0, trials, _BATCH):
        for one in draw_arms(case, measure, min(_BATCH, trials - start), (0.0,) * arms, random):
            errors += any(find_different_networks(one))
    return errors / trials


def list_cases() -> list[Case]:
    """Return the simulated cases.

    They vary the numbers of arms and seeds, the seed effects, and violations of the model's
    assumptions.
    """
    result = [
        Case(f"{arms} arms, {seeds} seeds, effect {effect}", (seeds,) * arms, (effect,) * arms)
        for arms in (2, 3, 9)
        for seeds in (2, 3, 5)
        for effect in (0.1, 0.6)
    ]
    unequal = ((2, 5), (2, 3, 5), (2, 2, 2, 5, 5, 5, 3, 3, 4))
    result += [
        Case(f"{len(one)} arms, {min(one)} to {max(one)} seeds, effect 0.3", one, (0.3,) * len(one))
        for one in unequal
    ]
    for arms, seeds in ((3, 2), (3, 3), (9, 2)):
        result.append(
            Case(
                f"{arms} arms, {seeds} seeds, half of it shared",
                (seeds,) * arms,
                (0.5,) * arms,
                together=0.5,
            )
        )
        for times in (2, 4):
            effects = (*(0.2,) * (arms - 1), 0.2 * times)
            result.append(
                Case(
                    f"{arms} arms, {seeds} seeds, one spreads {times} times",
                    (seeds,) * arms,
                    effects,
                )
            )
    result.append(Case("3 arms, 3 seeds, 2,000 images", (3,) * 3, (0.3,) * 3, images=2000))
    return result


def main(trials: int, gain: float, measure: Measure) -> None:
    """Simulate all cases and print the tables."""
    random = np.random.default_rng(0)
    error = (LEVEL * (1 - LEVEL) / trials) ** 0.5
    print(
        f"{trials} trials each; the standard error of a rate of 5 % is {100 * error:.1f} points\n"
    )
    print("Networks that are equally good, called different: any of the pairs")
    for arms in (2, 3, 9):
        shares = [
            f"{seeds} a side "
            f"{estimate_error(measure, arms, seeds, 300, max(100, trials // arms), random):.1%}"
            for seeds in (1, 2, 3, 5)
        ]
        print(f"{arms} arms: {', '.join(shares)}", flush=True)
    print(
        f"\n{'Strategies':44} equally good: any called different    one better by {gain:g} "
        "logits: told apart"
    )
    print(
        f"{'':44} {'pooled':>8} {'own':>8} "
        f"{'± ' + ('points' if measure.share else '0.01 nats'):>12} {'pooled':>20} {'own':>8}"
    )
    for case in list_cases():
        arms = len(case.seeds)
        error_pooled, error_own, spread = measure_rates(
            case, measure, (0.0,) * arms, trials, random
        )
        power, power_own, _ = measure_rates(
            case, measure, (gain,) + (0.0,) * (arms - 1), max(100, trials // arms), random
        )
        print(
            f"{case.name:44} {error_pooled:8.1%} {error_own:8.1%} {100 * spread:12.1f} "
            f"{power:20.0%} {power_own:8.0%}",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--gain", type=float, default=0.8)
    parser.add_argument("--measure", choices=MEASURES, default=ACCURACY.name)
    arguments = parser.parse_args()
    main(arguments.trials, arguments.gain, MEASURES[arguments.measure])
