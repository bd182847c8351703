"""One small timm network per kind of architecture, for tests that train from random weights."""

import pytest

KINDS = {
    "plain ViT": "timm/test_vit",
    "ViT with registers": "timm/test_vit2",
    "ViT with attention pooling": "timm/test_vit3",
    "ViT with relative positions": "timm/test_vit_relpos",
    "hierarchical ViT": "timm/pvt_v2_b0",
    "two heads": "timm/levit_128s",
    "ConvNeXt": "timm/test_convnext",
    "MLP-Mixer": "timm/mixer_s32_224",
    "mobile CNN": "timm/mobilenetv4_conv_small_035",
}
SIDE = 64
ONE_OF_EACH = [
    pytest.param(name, id=kind, marks=[] if kind == "ViT with registers" else [pytest.mark.train])
    for kind, name in KINDS.items()
]
