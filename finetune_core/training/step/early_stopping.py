"""Early stopping (Prechelt 1998).

A run ends once its validation metric has not improved for a number of epochs.
"""

from dataclasses import dataclass

from finetune_core.config import EarlyStoppingMetric, RunConfig
from finetune_core.training.step.running_metrics import RunningMetrics


@dataclass(frozen=True)
class EarlyStopping:
    """Rule that ends a run early.

    Attributes:
        metric: Metric on the validation images. ``off`` never stops.
        patience: Number of epochs without improvement.
    """

    metric: EarlyStoppingMetric
    patience: int

    @classmethod
    def from_config(cls, config: RunConfig) -> "EarlyStopping":
        """Return the rule that a config sets."""
        return cls(config.early_stopping, config.patience)

    def compute_value(self, validation: RunningMetrics) -> float:
        """Return the metric of an epoch. More is better."""
        if self.metric in ("off", "val_loss"):
            return -validation.loss
        return float(getattr(validation, self.metric.removeprefix("val_")))

    def is_due(self, epochs: int, best_epoch: int) -> bool:
        """Return whether a run ends after this many epochs.

        Args:
            epochs: Number of finished epochs.
            best_epoch: The best of them by this metric.
        """
        return self.metric != "off" and epochs - best_epoch >= self.patience
