"""Every strategy trains on the sample, and what it leaves frozen is what it was."""

import pytest

from finetune_core.config import make_config
from finetune_core.data.sample import digits_folder
from finetune_core.models.network import network_stages
from finetune_core.training import events
from finetune_core.training.loop import fit
from finetune_core.training.stage_plan import frozen_tensors, plan
from finetune_core.training.strategies import STRATEGIES

# A head alone needs more steps, and random weights more images, than there are here.
ACCURACY = {"feature_extraction": 0.2, "bias_only": 0.2, "batchnorm_only": 0.2, "from_scratch": 0.0}


@pytest.mark.train
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_trains_on_the_digits_and_what_is_frozen_stays(strategy, tmp_path):
    custom = (
        {"stage_rates": {"block3": 0.5, "block4": 1.0, "head": 1.0}} if strategy == "custom" else {}
    )
    settings = {
        "data": str(digits_folder()),
        "strategy": strategy,
        "epochs": 9,
        "image_size": 32,
        "learning_rate": 2e-3,
        **custom,
    }
    config = make_config(
        settings
        | {"train_fraction": 0.15, "val_fraction": 0.05, "test_fraction": 0.0, "precision": "fp32"}
    )
    end = list(fit(config, tmp_path))[-1]
    assert isinstance(end, events.RunFinished)
    assert end.val_accuracy >= ACCURACY.get(strategy, 0.4)
    # The audit has compared all that the strategy declares frozen; the head never is.
    stages = network_stages(config.backbone, 10)
    declared = [
        name
        for stage, one in zip(stages, plan(config, stages), strict=True)
        for name in frozen_tensors(one, stage)
    ]
    assert end.frozen_tensors == len(declared)
    assert not set(declared) & set(stages[-1].parameters)
