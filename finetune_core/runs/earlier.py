"""What was reached before: the best result on a data set of each way to train."""

from collections.abc import Iterable

from finetune_core.config import RunConfig
from finetune_core.runs.store import Run, summary


def way_to_train(config: RunConfig) -> tuple[str, ...]:
    """Equal for configs of the same backbone, first weights and strategy; the backbone comes first."""
    rates = sorted((config.stage_rates or {}).items())
    stage = config.cut or config.features_from or config.lora_from or ""
    return config.backbone, config.starts_from, config.strategy, stage, str(rates)


def best_before(runs: Iterable[Run], fingerprint: str) -> dict[tuple[str, ...], float]:
    """The best validation accuracy (0…1) of finished runs on the data set of that fingerprint, by ``way_to_train``; averaged weights are
    no way to train."""
    best: dict[tuple[str, ...], float] = {}
    for run in runs:
        if (
            run.status == "finished"
            and not run.config.averaged
            and run.started["fingerprint"] == fingerprint
        ):
            way = way_to_train(run.config)
            best[way] = max(best.get(way, 0.0), summary(run)["val_accuracy"])
    return best
