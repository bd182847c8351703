"""The single most useful next experiment after a comparison, by the first rule that applies.

Rules about missing runs and measured accuracies come before rules that infer from features and
gradients.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress

from finetune_core.config import RunConfig, get_setting
from finetune_core.errors import RunError
from finetune_core.evaluation.comparison.arms import Arm, arm_titles
from finetune_core.evaluation.comparison.compare import Comparison
from finetune_core.evaluation.comparison.experiment import (
    Evidence,
    Experiment,
    change_config,
    describe_score,
    has_same_features,
    is_only_head,
)
from finetune_core.evaluation.comparison.layer_diagnostics import load_layers, representative_run
from finetune_core.evaluation.comparison.layer_rules import propose_freeze, propose_thaw
from finetune_core.evaluation.comparison.pair_text import find_pair, find_seeded_arms, quote
from finetune_core.evaluation.comparison.shift import ShiftComparison, compare_shift, list_shifts
from finetune_core.evaluation.comparison.strategies import Interval
from finetune_core.evaluation.comparison.verdicts import WANTED
from finetune_core.evaluation.single_run.shift_files import find_shift_problem
from finetune_core.formatting import format_number, format_percent, pluralize
from finetune_core.runs.design import (
    arm_key,
    features_key,
    find_missing_baselines,
    find_profiled_stage,
    is_baseline,
)
from finetune_core.runs.store import Run, RunStore
from finetune_core.training.strategies.catalogue import STRATEGIES, count_epochs

_SEEDS = 3  # enough to tell a better strategy from a lucky run
_LP_FT = "linear_probe_then_full"


def collect_evidence(
    comparison: Comparison,
    shift: ShiftComparison | None = None,
    runs: Sequence[Run] | None = None,
) -> Evidence:
    """Collect what is known of a comparison's runs; nothing is computed anew but verdicts.

    Args:
        comparison: the comparison on the runs' own images.
        shift: the same runs on another data set; if None, on the first one that all runs have
            predicted.
        runs: runs to search for a profile; if None, all runs beside the first one.
    """
    layers = tuple(load_layers(representative_run(arm.runs)) for arm in comparison.arms)
    if runs is None:
        runs = RunStore(comparison.arms[0].runs[0].run_dir.parent).list_runs()
    profiled = frozenset(
        f"{run.config.data} {features_key(run.config)}"
        for run in runs
        if find_profiled_stage(run.config)
    )
    return Evidence(comparison, shift or _find_shift_comparison(comparison), layers, profiled)


def next_experiment(evidence: Evidence) -> Experiment | None:
    """Return the experiment of the first rule in ``RULES`` that applies, or None."""
    return next((found for rule in RULES.values() if (found := rule(evidence))), None)


def explain_none(evidence: Evidence) -> str:
    """Explain in one or two sentences why there is no next experiment."""
    if not evidence.ranking:
        return "None: no run here trained to the end, so there is nothing to build on."
    if any(evidence.layers):
        return "None stands out: neither the verdicts nor the layer diagnostics ask for one."
    return (
        "None stands out from the verdicts. Layer diagnostics, once measured, say whether to thaw "
        "another stage."
    )


def propose_longer_training(evidence: Evidence) -> Experiment | None:
    """Propose to train the first arm that has not converged twice as long."""
    arms = evidence.own.arms
    for arm in (arms[index] for index in evidence.ranking if arms[index].is_undertrained):
        epochs = min(2 * arm.config.epochs, int(get_setting("epochs").limits["le"]))
        auto = tuple(name for name in arm.config.auto if name != "epochs")
        configs = tuple(change_config(run.config, epochs=epochs, auto=auto) for run in arm.runs)
        reason = f"{describe_score(arm)} has not converged: {arm.convergence.reason}."
        what = f"train {quote(arm.title)} for {epochs} epochs"
        return Experiment("converge", what, reason, False, configs)
    return None


def propose_baseline(evidence: Evidence) -> Experiment | None:
    """Propose a linear probe for the best arm that was trained in epochs and lacks one."""
    arms = evidence.own.arms
    lacking = find_missing_baselines([run.config for arm in arms for run in arm.runs])
    for index in evidence.ranking:
        configs = tuple(
            config for config in lacking if features_key(config) == features_key(arms[index].config)
        )
        if configs and count_epochs(arms[index].config):
            reason = (
                f"{describe_score(arms[index])} has no linear probe beside it, so what training "
                "gained over the frozen features is not known."
            )
            return Experiment(
                "baseline", "fit a linear probe as the baseline", reason, False, configs
            )
    return None


def propose_profile(evidence: Evidence) -> Experiment | None:
    """Propose a profile once a strategy has been compared with the linear probe."""
    arms = evidence.own.arms
    for index in evidence.ranking:
        config = arms[index].config
        probed = any(
            is_baseline(arm.config) and has_same_features(arm, arms[index]) for arm in arms
        )
        started = f"{config.data} {features_key(config)}" in evidence.profiled
        if count_epochs(config) and probed and not started and STRATEGIES[config.strategy].classic:
            reason = (
                f"{describe_score(arms[index])} does not show which stage was worth training. A "
                "profile trains each stage alone."
            )
            what = f"profile the layers of {config.backbone}"
            return Experiment("profile", what, reason, False, ())
    return None


def propose_lp_ft(evidence: Evidence) -> Experiment | None:
    """Propose LP-FT or WiSE-FT if training gains in-distribution but loses on shifted images.

    The arm that trained is compared with frozen features on both sides.
    """
    if not evidence.shift:
        return None
    own, shifted = evidence.shift.matched, evidence.shift.shifted
    arms = evidence.own.arms
    for tuned in (index for index in evidence.ranking if _may_distort(arms[index])):
        for frozen in (
            index
            for index in evidence.ranking
            if is_only_head(arms[index]) and has_same_features(arms[index], arms[tuned])
        ):
            gain, loss = (_significant_gain(side, tuned, frozen) for side in (own, shifted))
            if gain and loss and gain.value > 0 > loss.value:
                reason = (
                    f"{quote(arms[tuned].title)} beats {quote(arms[frozen].title)} by "
                    f"{_format_gain(own, gain)} on their own images, but is "
                    f"{_format_gain(own, loss)} worse on "
                    f"{pluralize(shifted.images, 'shifted image')}."
                )
                return _propose_against_distortion(arms, tuned, reason)
    return None


def propose_more_images(evidence: Evidence) -> Experiment | None:
    """Propose more training images if the last ones that were added helped significantly."""
    arms, ranked = evidence.own.arms, evidence.ranking
    curve = [
        index
        for index in ranked
        if _settings_without_images(arms[index].config)
        == _settings_without_images(arms[ranked[0]].config)
    ]
    by_share = sorted(curve, key=lambda index: arms[index].config.train_fraction)[-2:]
    if len({arms[index].config.train_fraction for index in by_share}) < 2:
        return None
    few, many = by_share
    gain = _significant_gain(evidence.own, many, few)
    if not gain or gain.value < 0:
        return None
    before, share = (arms[index].config.train_fraction for index in by_share)
    reason = (
        f"From {format_percent(before, 0)} to {format_percent(share, 0)} of the training images, "
        f"{quote(arm_titles([arms[many].config])[0])} gained {_format_gain(evidence.own, gain)}, "
        "so its curve still rises."
    )
    if share == 1:
        return Experiment("images", "label more images", reason, False, ())
    more = min(1.0, 2 * share)
    configs = tuple(change_config(run.config, train_fraction=more) for run in arms[many].runs)
    return Experiment(
        "images",
        f"train on {format_percent(more, 0)} of the training images",
        reason,
        False,
        configs,
    )


def propose_more_seeds(evidence: Evidence) -> Experiment | None:
    """Propose more seeds if too few seeds keep the best two strategies from being distinguished.

    The seeds are those of the arm whose seeds leave the larger error, never of an arm that another
    seed would not change.
    """
    best, rival = _find_best_two(evidence)
    arms = evidence.own.arms
    if best is None or rival is None:
        return None
    pair = find_pair(evidence.own.pairs, best, rival)
    seeded = find_seeded_arms(arms, pair)
    if not seeded:
        return None
    unsure = max(seeded, key=lambda index: (_seed_error(arms[index]), index == best))
    used_seeds = {run.config.seed for run in arms[unsure].runs}
    if (pair.strategies and pair.strategies.different) or len(used_seeds) >= _SEEDS:
        return None
    if pair.seed_error is not None and pair.seed_error <= pair.image_error:
        return None
    new = [seed for seed in range(2 * _SEEDS) if seed not in used_seeds][: _SEEDS - len(used_seeds)]
    both = f"{describe_score(arms[best])} and {describe_score(arms[rival])}"
    counts = "with " + " and ".join(
        pluralize(len(arms[index].members), "seed") for index in (best, rival) if index in seeded
    )
    reason = (
        f"{both} are not distinguishable {counts}."
        if pair.strategies
        else f"{both} cannot be compared as strategies {counts}."
    )
    what = (
        f"train {quote(arms[unsure].title)} with seed{'s' if len(new) > 1 else ''} "
        f"{' and '.join(map(str, new))}"
    )
    configs = tuple(change_config(arms[unsure].config, seed=seed) for seed in new)
    return Experiment("seeds", what, reason, False, configs)


def propose_test_images(evidence: Evidence) -> Experiment | None:
    """Propose more test images if their error, not that of the seeds, hides a difference."""
    best, rival = _find_best_two(evidence)
    if best is None or rival is None:
        return None
    pair, arms = find_pair(evidence.own.pairs, best, rival), evidence.own.arms
    if not pair.strategies or pair.strategies.different:
        return None
    if (pair.seed_error or 0.0) > pair.image_error:
        return None
    size, unit, images = pair.measure.format_difference, pair.measure.unit, evidence.own.images
    now = pair.strategies.smallest
    target = WANTED if now > WANTED else now / 2
    needed = pair.images_needed(target)
    power_text = f"These show a difference of {size(now)} {unit} or more."
    if needed:
        power_text = (
            f"{format_number(needed)} images would show a difference of {size(target)} {unit}, "
            f"these only one of {size(now)}."
        )
    reason = (
        f"{describe_score(arms[best])} and {describe_score(arms[rival])} are not distinguishable "
        f"on {pluralize(images, 'image')}, which leave a larger error (± {size(pair.image_error)} "
        f"{unit}) than the seeds. {power_text}"
    )
    return Experiment("test_images", "evaluate on more test images", reason, False, ())


def _find_best_two(evidence: Evidence) -> tuple[int | None, int | None]:
    """Return the indices of the best arm and of the best arm with other settings."""
    arms, ranked = evidence.own.arms, evidence.ranking
    if not ranked:
        return None, None
    others = [
        index
        for index in ranked[1:]
        if arm_key(arms[index].config) != arm_key(arms[ranked[0]].config)
    ]
    return ranked[0], next(iter(others), None)


def _seed_error(arm: Arm) -> float:
    """Return the standard error due to an arm's seeds; infinite with one seed."""
    if arm.seed_deviation is None or len(arm.members) < 2:
        return math.inf
    return float(arm.seed_deviation / math.sqrt(len(arm.members)))


RULES: dict[str, Callable[[Evidence], Experiment | None]] = {
    "converge": propose_longer_training,
    "baseline": propose_baseline,
    "profile": propose_profile,
    "seeds": propose_more_seeds,
    "test_images": propose_test_images,
    "shift": propose_lp_ft,
    "images": propose_more_images,
    "thaw": propose_thaw,
    "freeze": propose_freeze,
}
HELP = (
    "The first of these that applies. Longer training of what has not converged. A linear probe "
    "where there is no baseline. A profile, which trains each stage alone. More seeds, or more "
    "test images, where the best two are not distinguishable: of whichever the larger error comes "
    "from. LP-FT, then WiSE-FT, where training beats frozen features on the runs' own images and "
    "loses to them on shifted ones. More training images where the last ones that were added "
    "helped. The next stage to thaw where linear models on the features say so. Fewer stages where "
    "the first ones got less than 1 % of the gradient and their features hardly changed. The last "
    "two are inferred, so confirm them with a comparison."
)


def _find_shift_comparison(comparison: Comparison) -> ShiftComparison | None:
    """Return the same arms on another data set that all runs have predicted; None without one."""
    runs = [run for arm in comparison.arms for run in arm.runs]
    for fingerprint in list_shifts(runs):
        if any(find_shift_problem(run, fingerprint) for run in runs):
            continue
        with suppress(RunError):  # different images were left out, or no class is shared
            return compare_shift(runs, fingerprint, comparison.measure.name)
    return None


def _significant_gain(side: Comparison, first: int, second: int) -> Interval | None:
    """Return by how much one arm is better than the other, or None if it is not significant.

    Higher is better for every metric.
    """
    pair = find_pair(side.pairs, first, second)
    claim = pair.widest.claim
    if not pair.widest.different:
        return None
    if pair.a == first:
        return Interval(claim.gain, claim.low, claim.high)
    return Interval(-claim.gain, -claim.high, -claim.low)


def _format_gain(side: Comparison, gain: Interval) -> str:
    """Format the absolute size of a gain: ``2.1 points (0.4 to 3.8)``."""
    size = side.measure.format_difference
    low, high = sorted((abs(gain.low), abs(gain.high)))
    return f"{size(abs(gain.value))} {side.measure.unit} ({size(low)} to {size(high)})"


def _propose_against_distortion(arms: Sequence[Arm], tuned: int, reason: str) -> Experiment | None:
    """Propose LP-FT with the seeds of an arm; WiSE-FT if LP-FT cannot run or was tried.

    WiSE-FT averages weights and trains nothing. None if it was tried, too.
    """
    arm = arms[tuned]
    tried = any(other.config.strategy == _LP_FT and has_same_features(other, arm) for other in arms)
    if arm.config.epochs > 1 and not tried:
        configs = tuple(
            change_config(run.config, **run.config.strategy_changes(_LP_FT)) for run in arm.runs
        )
        return Experiment(
            "shift", f"train {quote(STRATEGIES[_LP_FT].title)}", reason, False, configs
        )
    averaged = [other.config.averaged for other in arms if other.config.averaged]
    folders = {str(run.run_dir) for run in arm.runs}
    if any(average.how == "wise" and folders & set(average.runs) for average in averaged):
        return None
    what = f"average the weights of {quote(arm.title)} with those that it started from (WiSE-FT)"
    return Experiment("shift", what, reason, False, ())


def _may_distort(arm: Arm) -> bool:
    """Return whether an arm trained pretrained stages from the first step on."""
    return arm.depth.trained_stages > 1 and arm.config.strategy not in (_LP_FT, "from_scratch")


def _settings_without_images(config: RunConfig) -> str:
    return config.model_dump_json(exclude={"seed", "train_fraction"})
