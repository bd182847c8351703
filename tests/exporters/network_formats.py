"""The forms of export that hold a network, for tests that go through all of them."""

import pytest

from finetune_core.exporters.catalogue import FORMATS

NETWORK_FORMATS = [
    pytest.param(name, marks=[pytest.mark.train] if form.apart else [])
    for name, form in FORMATS.items()
    if form.network
]
