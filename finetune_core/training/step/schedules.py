"""Learning-rate schedules."""

import math

import torch

from finetune_core.config import RunConfig

# Share of a one-cycle run that rises, and its first rate over the highest.
_RISING, _FIRST = 0.3, 1 / 25


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group's rate to ``factor`` times its ``base_lr`` and return ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return factor


def learning_rate_factor(config: RunConfig, step: int, steps_per_epoch: int) -> float:
    """Return the factor of the learning rate at a step, counted from 0 over the whole run.

    - Cosine: a linear rise over the warm-up, then half a cosine towards 0 (Loshchilov & Hutter
      2017, without restarts).
    - Step: a tenth from half of the run on, a hundredth from three quarters on (He et al. 2016).
    - One cycle: up along half a cosine for 30 % of the run, then down to next to nothing (Smith &
      Topin 2018, as in torch).
    """
    if config.schedule == "constant":
        return 1.0
    total = config.epochs * steps_per_epoch
    if config.schedule == "one_cycle":
        return _one_cycle(step, total)
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "step":
        return 1.0 if 2 * step < total else 0.1 if 4 * step < 3 * total else 0.01
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _one_cycle(step: int, total: int) -> float:
    peak = max(1.0, _RISING * total - 1)
    if step <= peak:
        start, end, share = _FIRST, 1.0, step / peak
    else:
        start, end, share = 1.0, _FIRST * 1e-4, (step - peak) / max(1.0, total - 1 - peak)
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))
