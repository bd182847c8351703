"""Settings of a profile's runs: the probe, stages trained with the head, full fine-tuning.

Every run starts from the probe's head and has the auto recipe of the strategy *last block*, except
for the rates of its stages; full fine-tuning has its own recipe.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from finetune_core.config import RunConfig, make_config
from finetune_core.errors import ConfigError
from finetune_core.models.network import has_linear_head
from finetune_core.runs.design import depends_on_seed, design_runs
from finetune_core.training.strategies.catalogue import BASELINE
from finetune_core.training.strategies.stage_plan import list_stages

SEEDS = (0, 1)
HEAD = "head"
SHORT = 4  # the first round trains for a quarter of the epochs
Rates = Mapping[str, float]  # stage -> factor on the learning rate


@dataclass(frozen=True)
class Setup:
    """Settings of all runs of a profile.

    Attributes:
        probe: the linear probe.
        stage: settings of the runs of stages, those of the strategy *last block*.
        full: full fine-tuning.
        sizes: number of parameters of each stage that may train, from the input to the head.
        seeds: the seeds; the first is that of the short round.
    """

    probe: RunConfig
    stage: RunConfig
    full: RunConfig
    sizes: Mapping[str, int]
    seeds: tuple[int, ...]

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages that may train."""
        return tuple(self.sizes)

    @property
    def extra_seed(self) -> int | None:
        """The seed of the last round; None if each arm has one seed only."""
        return max(self.seeds) + 1 if len(self.seeds) > 1 else None

    def make_probe_configs(self) -> list[RunConfig]:
        """Return the probes: one seed, unless the training images depend on the seed."""
        seeds = self.seeds if depends_on_seed(self.probe) else self.seeds[:1]
        return [_replace(self.probe, seed=seed) for seed in seeds]

    def make_stages_config(self, stages: Collection[str], seed: int, rates: Rates) -> RunConfig:
        """Return the run that trains these stages and the head."""
        trained = {name: rates[name] for name in self.sizes if name in stages} | {HEAD: 1.0}
        custom = self.stage.strategy_changes("custom") | {"stage_rates": trained}
        return _replace(self.stage, **custom, seed=seed)

    def make_short_config(self, stage: str, rate: float) -> RunConfig:
        """Return the stage's run of the short round: a complete one, its schedule included."""
        whole = self.make_stages_config([stage], self.seeds[0], {stage: rate})
        epochs = max(1, round(whole.epochs / SHORT))
        warmup = min(whole.warmup_epochs / SHORT, epochs / 2)
        return _replace(whole, epochs=epochs, warmup_epochs=round(warmup, 2))

    def make_full_config(self, seed: int) -> RunConfig:
        """Return the run of full fine-tuning."""
        return _replace(self.full, seed=seed)


def set_up(
    base: RunConfig,
    num_images: int | None = None,
    stages: Sequence[str] = (),
    seeds: Sequence[int] = SEEDS,
) -> Setup:
    """Return the settings of a profile's runs.

    Args:
        base: all other settings; its strategy does not matter.
        num_images: training images of the data set, from which the settings in ``base.auto``
            follow; None keeps those of ``base``.
        stages: stages that may train; all of the backbone if empty.
        seeds: seeds of each arm, the first one first.

    Raises:
        ConfigError: if a setting or a stage cannot be used.
        WeightsError: if the backbone is not known.
    """
    if not seeds:
        raise ConfigError({"seeds": "name at least one"})
    ready: dict[str, RunConfig] = {}
    for strategy in (BASELINE, "last_block", "full"):
        (config,) = design_runs(base, [strategy], seeds[:1], num_images=num_images)
        # Fix what the recipe has chosen, because the recipe of *custom* differs.
        can_probe = has_linear_head(config.backbone, config.image_size)
        ready[strategy] = _replace(config, initial_head="probe" if can_probe else "random", auto=())
    whole = list_stages(ready["full"])
    own = {stage.name: stage.parameter_count for stage in whole[:-1] if stage.parameter_count}
    if unknown := [name for name in stages if name not in own]:
        known = f"the stages of {base.backbone} are {', '.join(own)}"
        raise ConfigError({"stages": f"there is no stage {', '.join(unknown)}; {known}"})
    sizes = {name: size for name, size in own.items() if not stages or name in stages}
    probe, stage, full = (ready[name] for name in (BASELINE, "last_block", "full"))
    return Setup(probe, stage, full, sizes, tuple(dict.fromkeys(seeds)))


def _replace(config: RunConfig, **changes: object) -> RunConfig:
    return make_config(config.model_dump() | changes)
