"""Every backbone as a test's parameter: a few of different kinds in every run of the tests, all others among the slow tests."""

import pytest

from finetune_core.models.catalogue import backbone_names

FEW = {"efficientnet_lite0", "resnet18", "googlenet", "regnet_y_400mf", "vit_b_16", "swin_t", "maxvit_t", "vgg11"}
EVERY_BACKBONE = [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in backbone_names()]
