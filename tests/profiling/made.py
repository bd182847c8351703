"""Made-up profiles with a known result."""

from finetune_core.evaluation.comparison.strategies import Interval
from finetune_core.profiling.plan import SelectionStep
from finetune_core.profiling.result import Profile, ProfileArm
from finetune_core.runs.convergence import Convergence

CONVERGED = Convergence(True, "its validation loss falls no more")
FALLING = Convergence(False, "its validation loss still falls")
STAGES = ("stem", "block1", "block2")


def interval(value, reach=0.02):
    return Interval(value, value - reach, value + reach)


def make_arm(kind, *stages, gain=0.0, reach=0.02, parameters=200, seconds=40.0, judged=CONVERGED):
    ids = tuple(f"{kind}-{'-'.join(stages)}-{seed}" for seed in (0, 1))
    values = (
        0.7 + gain,
        interval(gain, reach),
        2,
        parameters,
        seconds,
        dict.fromkeys(stages, 1e-3),
        judged,
        ids,
    )
    return ProfileArm(kind, stages, *values)


def make_profile(*arms, chosen=0, against_full=None, **changes):
    """Return a complete profile of ``STAGES`` with the given gain of full fine-tuning."""
    arms = arms or (make_arm("stage", "block2", gain=0.061),)
    path = (SelectionStep(arms[chosen].stages[0], 0.8, None, True),)
    usual = {
        "backbone": "efficientnet_lite0",
        "stages": STAGES,
        "round": "third_seeds",
        "missing": 0,
        "split": "test",
        "images": 300,
        "groups": 300,
        "probe": 0.7,
        "arms": arms,
        "chosen": chosen,
        "against_full": against_full,
        "path": path,
        "left_out": (),
        "failed": (),
        "predictions": (),
        "total_parameters": 1000,
    }
    return Profile(**usual | changes)
