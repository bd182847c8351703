"""Early stopping: a run ends once its validation metric has not improved for a number of epochs (Prechelt 1998)."""

from dataclasses import dataclass

from finetune_core.config import EarlyStoppingMetric, RunConfig
from finetune_core.training.running_metrics import RunningMetrics


@dataclass(frozen=True)
class EarlyStopping:
    """
    Attributes:
        metric: of the validation images; ``off`` never stops.
        patience: epochs without improvement.
    """

    metric: EarlyStoppingMetric
    patience: int

    @classmethod
    def of(cls, config: RunConfig) -> "EarlyStopping":
        return cls(config.early_stopping, config.patience)

    def value(self, validation: RunningMetrics) -> float:
        """The metric of an epoch; more is better."""
        if self.metric in ("off", "val_loss"):
            return -validation.loss
        return float(getattr(validation, self.metric.removeprefix("val_")))

    def is_due(self, epochs: int, best_epoch: int) -> bool:
        """Whether a run of so many finished epochs ends here, the best of which, by this metric, was ``best_epoch``."""
        return self.metric != "off" and epochs - best_epoch >= self.patience
