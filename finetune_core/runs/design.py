"""Design of a comparison: strategies, seeds, backbones and shares of the data, all else equal.

The data are split by ``split_seed`` alone. The initial head and the order of the images follow from
``seed``. So runs of equal seeds start from the same head and see the same images in the same order,
whatever they freeze.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from finetune_core.config import RunConfig, all_settings, make_config
from finetune_core.data.dataset import Dataset
from finetune_core.errors import ConfigError
from finetune_core.training.devices.speed_book import SpeedBook
from finetune_core.training.forecast.forecast import forecast_run
from finetune_core.training.strategies.catalogue import BASELINE, count_epochs
from finetune_core.training.strategies.recipes import fill_auto
from finetune_core.training.strategies.stage_plan import cut_index, list_stages, plan_strategy

FROM = "from:"  # prefix of a strategy in which everything from a stage on trains
PROFILE_RATES = (1.0, 3.0)  # times the learning rate, tried for each stage of a profile
_EVERYTHING_FOUND = 2**62


def design_runs(
    base: RunConfig,
    strategies: Sequence[str],
    seeds: Sequence[int],
    backbones: Sequence[str] = (),
    fractions: Sequence[float] = (),
    num_images: int | None = None,
) -> list[RunConfig]:
    """Return one config per strategy, seed, backbone and share of the training images.

    The cheapest come first. A strategy that does not depend on the seed has only the first seed.

    Args:
        base: all other settings; its backbone and share are used if none are given.
        strategies: names, or ``from:STAGE``. ``custom`` is that of ``base``.
        seeds: seeds.
        backbones: names of networks.
        fractions: shares of the training images.
        num_images: training images of the data set, from which the settings in ``base.auto`` follow
            for each strategy; None keeps those of ``base``.

    Raises:
        ConfigError: if a config cannot be used, or there is none.
    """
    empty = [name for name, given in (("strategies", strategies), ("seeds", seeds)) if not given]
    if empty:
        raise ConfigError(dict.fromkeys(empty, "name at least one"))
    made = [
        make_config(
            base.model_dump()
            | _get_strategy_settings(base, strategy)
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
    return _sort_by_cost(made)


def find_missing_baselines(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """Return the linear probes that are missing as baselines of runs trained in epochs.

    There is one per backbone, its weights and input, and share of the training images. A share
    below 1 is drawn with the seed, so it has one probe per seed.
    """
    there = {features_key(config) for config in configs if is_baseline(config)}
    probes: dict[tuple[str, int | None], RunConfig] = {}
    for config in configs:
        if count_epochs(config) and features_key(config) not in there:
            probe = make_config(config.model_dump() | _get_strategy_settings(config, BASELINE))
            seed = probe.seed if depends_on_seed(probe) else None
            probes.setdefault((features_key(config), seed), probe)
    backbones = list(dict.fromkeys(probe.backbone for probe in probes.values()))
    return sorted(probes.values(), key=lambda probe: backbones.index(probe.backbone))


def depends_on_seed(config: RunConfig) -> bool:
    """Return whether another seed gives another network.

    A head fitted without epochs is the same with every seed, up to the folds that its penalty is
    chosen on, unless the seed draws the training images. Averages depend on the seeds of their
    runs.
    """
    return count_epochs(config) > 0 or config.train_fraction < 1 or config.averaged is not None


def is_baseline(config: RunConfig) -> bool:
    """Return whether a run is a linear probe on the input of the head, and no ensemble."""
    return config.strategy == BASELINE and config.features_from is None and config.averaged is None


def find_profiled_stage(config: RunConfig) -> str | None:
    """Return the stage that a run of a profile trains alone from the probe's head.

    None stands for runs that do not belong to a profile.
    """
    if config.strategy != "custom" or not config.stage_rates or config.averaged:
        return None
    trained = {name: rate for name, rate in config.stage_rates.items() if name != "head" and rate}
    ready = config.initial_head == "probe" and config.stage_rates.get("head") == 1
    alone = len(trained) == 1 and {*trained.values()} <= {*PROFILE_RATES}
    return next(iter(trained)) if ready and alone else None


def features_key(config: RunConfig) -> str:
    """Return a key that is equal for runs which start from the same features of the same images.

    A linear probe among these runs is their baseline.
    """
    return config.model_dump_json(
        include={"backbone", "weights", "from_run", "train_fraction", *config.input_settings}
    )


def run_key(config: RunConfig) -> str:
    """Return a key that is equal for runs which compute the same.

    The key does not depend on how the settings were chosen.
    """
    return config.model_dump_json(exclude=find_ineffective_settings(config))


def arm_key(config: RunConfig) -> str:
    """Return a key that is equal for runs which differ only in the seed."""
    return config.model_dump_json(exclude={"seed"} | find_ineffective_settings(config))


def find_ineffective_settings(config: RunConfig) -> set[str]:
    """Return the names of the settings that have no effect on a run.

    A run without epochs does not train in steps. Averages are computed in fp32.
    """
    found = {"auto"}
    if not count_epochs(config):
        found |= {name for name, one in all_settings().items() if one.stepwise}
    return found | ({"precision"} if config.averaged else set())


def group_by_arm(configs: Iterable[RunConfig]) -> dict[str, list[RunConfig]]:
    """Group configs by ``arm_key``, in their order."""
    arms: dict[str, list[RunConfig]] = {}
    for config in configs:
        arms.setdefault(arm_key(config), []).append(config)
    return arms


def set_rates(configs: Sequence[RunConfig], rates: Mapping[str, float | None]) -> list[RunConfig]:
    """Return the configs with the learning rate that was found for their arm, if one was.

    Args:
        configs: the configs.
        rates: learning rate by ``arm_key``.
    """
    return [
        _set_rate(config, rate) if (rate := rates.get(arm_key(config))) else config
        for config in configs
    ]


def _set_rate(config: RunConfig, rate: float) -> RunConfig:
    auto = tuple(name for name in config.auto if name != "learning_rate")
    return config.model_copy(update={"learning_rate": rate, "auto": auto})


def forecast_arm(
    configs: Sequence[RunConfig], dataset: Dataset, book: SpeedBook
) -> list[float] | None:
    """Forecast the seconds of each run of one arm.

    Only the first run computes the frozen stages.

    Returns:
        Seconds per run; None if the speeds were not measured yet.
    """
    alone, shared = (
        forecast_run(configs[0], dataset, book, found) for found in (0, _EVERYTHING_FOUND)
    )
    return [alone.seconds, *[shared.seconds] * (len(configs) - 1)] if alone and shared else None


@dataclass(frozen=True)
class Spread:
    """Forecast of runs on several machines.

    Attributes:
        seconds: time from the start of the first run to the end of the last one.
        saved: seconds of work that runs save because the output of their frozen stages is on their
            machine already.
    """

    seconds: float
    saved: float


def forecast_spread(arms: Sequence[Sequence[float]], machines: Sequence[int]) -> Spread:
    """Forecast runs that train at the same time, each starting in the slot that is free first.

    Args:
        arms: ``forecast_arm`` of each arm.
        machines: how many runs each machine trains at a time; at least one slot in total.
    """
    free = [(0.0, machine) for machine, places in enumerate(machines) for _ in range(places)]
    # (arm, machine) -> time from which on the machine has the output of the arm's frozen stages
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


def _get_strategy_settings(base: RunConfig, name: str) -> dict[str, str | None]:
    if name.startswith(FROM):
        return base.strategy_changes("custom") | {"cut": name.removeprefix(FROM)}
    if name == "custom":
        if base.strategy != "custom":
            raise ConfigError(
                {"strategies": f"custom needs the first stage that trains; write {FROM}STAGE"}
            )
        return {"averaged": None}
    return base.strategy_changes(name)


def _sort_by_cost(configs: list[RunConfig]) -> list[RunConfig]:
    """Sort configs by cost.

    Shallow cuts come first, because deeper ones are computed from them. Runs without frozen stages
    come last.
    """
    cuts = {
        arm: cut_index(plan_strategy(some[0], list_stages(some[0])))
        for arm, some in group_by_arm(configs).items()
    }
    backbones = list(dict.fromkeys(config.backbone for config in configs))

    def sort_key(config: RunConfig) -> tuple[int, bool, int]:
        cut = cuts[arm_key(config)]
        return backbones.index(config.backbone), cut == 0, cut

    return sorted(configs, key=sort_key)
