"""The runs of a comparison: strategies, seeds, backbones and shares of the data, everything else equal.

The data are split by ``split_seed`` alone, and head and order of the images follow from ``seed``: runs of equal seeds start
from the same head and see the same images in the same order, independent of what they freeze.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from finetune_core.config import RunConfig, all_settings, make_config
from finetune_core.data.dataset import Dataset
from finetune_core.errors import ConfigError
from finetune_core.training.forecast import expected
from finetune_core.training.recipes import fill_auto
from finetune_core.training.speed_book import SpeedBook
from finetune_core.training.stage_plan import cut_index, plan, stages_of
from finetune_core.training.strategies import BASELINE, epochs_of

FROM = "from:"  # as a strategy: everything from this stage on trains
PROFILE_RATES = (1.0, 3.0)  # times the learning rate, tried for each stage of a profile
_EVERYTHING_FOUND = 2**62


def design(
    base: RunConfig,
    strategies: Sequence[str],
    seeds: Sequence[int],
    backbones: Sequence[str] = (),
    fractions: Sequence[float] = (),
    num_images: int | None = None,
) -> list[RunConfig]:
    """Return one config per strategy, seed, backbone and share of the training images.

    The cheapest come first. A strategy that does not depend on the seed has the first seed only.

    Args:
        base: all other settings; its backbone and share are taken where none are named.
        strategies: names, or ``from:STAGE``. ``custom`` is that of ``base``.
        fractions: shares of the training images.
        num_images: training images of the data set, from which the settings in ``base.auto`` follow for
            each strategy; None keeps those of ``base``.

    Raises:
        ConfigError: when a config cannot be used, or there is none.
    """
    empty = [name for name, given in (("strategies", strategies), ("seeds", seeds)) if not given]
    if empty:
        raise ConfigError(dict.fromkeys(empty, "name at least one"))
    made = [
        make_config(
            base.model_dump()
            | _strategy(base, strategy)
            | {"backbone": backbone, "train_fraction": share, "seed": seed}
        )
        for backbone in dict.fromkeys(backbones or [base.backbone])
        for share in dict.fromkeys(fractions or [base.train_fraction])
        for strategy in dict.fromkeys(strategies)
        for seed in dict.fromkeys(seeds)
    ]
    made = [config for config in made if config.seed == seeds[0] or depends_on_seed(config)]
    if num_images is not None:
        made = [fill_auto(config, num_images) for config in made]
    return _cheapest_order(made)


def lacking_baselines(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """Return the linear probes that runs trained in epochs lack as a baseline.

    There is one per backbone, its weights and input, and share of the training images; of less than
    all training images, which the seed draws, one per seed.
    """
    there = {features_of(config) for config in configs if is_baseline(config)}
    probes: dict[tuple[str, int | None], RunConfig] = {}
    for config in configs:
        if epochs_of(config) and features_of(config) not in there:
            probe = make_config(config.model_dump() | _strategy(config, BASELINE))
            seed = probe.seed if depends_on_seed(probe) else None
            probes.setdefault((features_of(config), seed), probe)
    backbones = list(dict.fromkeys(probe.backbone for probe in probes.values()))
    return sorted(probes.values(), key=lambda probe: backbones.index(probe.backbone))


def depends_on_seed(config: RunConfig) -> bool:
    """Return whether another seed gives another network.

    A head fitted without epochs is the same with every seed, up to the folds that its penalty is
    chosen on, unless the seed draws the training images. Averages depend on the seeds of their runs.
    """
    return epochs_of(config) > 0 or config.train_fraction < 1 or config.averaged is not None


def is_baseline(config: RunConfig) -> bool:
    """Whether a run is a linear probe on what goes into the head, and not an ensemble of such."""
    return config.strategy == BASELINE and config.features_from is None and config.averaged is None


def profiled_stage(config: RunConfig) -> str | None:
    """Return the stage that a run of a profile trains alone from the probe's head; None of others."""
    if config.strategy != "custom" or not config.stage_rates or config.averaged:
        return None
    trained = {name: rate for name, rate in config.stage_rates.items() if name != "head" and rate}
    ready = config.initial_head == "probe" and config.stage_rates.get("head") == 1
    alone = len(trained) == 1 and {*trained.values()} <= {*PROFILE_RATES}
    return next(iter(trained)) if ready and alone else None


def features_of(config: RunConfig) -> str:
    """Equal for runs that start from the same features of the same training images, so that a linear probe among them is the baseline."""
    return config.model_dump_json(
        include={"backbone", "weights", "from_run", "train_fraction", *config.input_settings}
    )


def run_of(config: RunConfig) -> str:
    """Equal for runs that compute the same, whoever chose their settings."""
    return config.model_dump_json(exclude=settings_without_effect(config))


def arm_of(config: RunConfig) -> str:
    """Equal for runs that differ in nothing but the seed."""
    return config.model_dump_json(exclude={"seed"} | settings_without_effect(config))


def settings_without_effect(config: RunConfig) -> set[str]:
    """Return the names of the settings that a run does not obey.

    A run without epochs does not train in steps. Averages are computed in fp32.
    """
    found = {"auto"}
    if not epochs_of(config):
        found |= {name for name, one in all_settings().items() if one.stepwise}
    return found | ({"precision"} if config.averaged else set())


def by_arm(configs: Iterable[RunConfig]) -> dict[str, list[RunConfig]]:
    """The configs by ``arm_of``, in their order."""
    arms: dict[str, list[RunConfig]] = {}
    for config in configs:
        arms.setdefault(arm_of(config), []).append(config)
    return arms


def with_rates(configs: Sequence[RunConfig], rates: Mapping[str, float | None]) -> list[RunConfig]:
    """The configs with the learning rate that was found for their arm (by ``arm_of``), where one was."""
    return [
        _at_rate(config, rate) if (rate := rates.get(arm_of(config))) else config
        for config in configs
    ]


def _at_rate(config: RunConfig, rate: float) -> RunConfig:
    auto = tuple(name for name in config.auto if name != "learning_rate")
    return config.model_copy(update={"learning_rate": rate, "auto": auto})


def arm_seconds(
    configs: Sequence[RunConfig], dataset: Dataset, book: SpeedBook
) -> list[float] | None:
    """What each run of one arm is expected to take: only the first pays for the frozen stages. None where the speeds were not
    measured yet."""
    alone, shared = (expected(configs[0], dataset, book, found) for found in (0, _EVERYTHING_FOUND))
    return [alone.seconds, *[shared.seconds] * (len(configs) - 1)] if alone and shared else None


@dataclass(frozen=True)
class Spread:
    """What runs take on several machines: seconds from the first to the last, and seconds of work that they save because they find
    the output of their frozen stages on their machine."""

    seconds: float
    saved: float


def spread(arms: Sequence[Sequence[float]], machines: Sequence[int]) -> Spread:
    """Forecast runs that train beside each other, each beginning where a place is free first.

    Args:
        arms: ``arm_seconds`` of each.
        machines: how many runs each trains at a time; at least one place in all.
    """
    free = [(0.0, machine) for machine, places in enumerate(machines) for _ in range(places)]
    # from when on a machine has the output of an arm's frozen stages
    there: dict[tuple[int, int], float] = {}
    saved = 0.0
    for arm, seconds in enumerate(arms):
        for _ in seconds:
            earliest = min(at for at, _ in free)
            begins, machine = min(
                free,
                key=lambda one: (one[0] > earliest, there.get((arm, one[1]), math.inf) > earliest),
            )
            takes = seconds[-1] if there.get((arm, machine), math.inf) <= begins else seconds[0]
            saved += seconds[0] - takes
            there.setdefault((arm, machine), begins + takes)
            free[free.index((begins, machine))] = (begins + takes, machine)
    return Spread(max(at for at, _ in free), saved)


def _strategy(base: RunConfig, name: str) -> dict[str, str | None]:
    if name.startswith(FROM):
        return base.for_strategy("custom") | {"cut": name.removeprefix(FROM)}
    if name == "custom":
        if base.strategy != "custom":
            raise ConfigError(
                {"strategies": f"custom needs the first stage that trains; write {FROM}STAGE"}
            )
        return {"averaged": None}
    return base.for_strategy(name)


def _cheapest_order(configs: list[RunConfig]) -> list[RunConfig]:
    """Shallow cuts first, because a deeper one is computed from them; what has no trunk at all comes last."""
    cuts = {
        arm: cut_index(plan(some[0], stages_of(some[0]))) for arm, some in by_arm(configs).items()
    }
    backbones = list(dict.fromkeys(config.backbone for config in configs))

    def place(config: RunConfig) -> tuple[int, bool, int]:
        cut = cuts[arm_of(config)]
        return backbones.index(config.backbone), cut == 0, cut

    return sorted(configs, key=place)
