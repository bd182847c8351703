"""Exports the smallest network of each of timm's families to ONNX, with random weights, and compares what onnxruntime answers.

    python -m benchmarks.onnx_timm                  # a line each, and how many went
    python -m benchmarks.onnx_timm convnext eva

A family is one of timm's modules. Images are as small as the network takes, from 64 pixels on. What does not go has to end in an
``ExportError`` that says why: anything else ends the benchmark.
"""

import argparse
import json
import math
import tempfile
import time
from collections import Counter
from pathlib import Path

import timm
import torch

from finetune_core.errors import ConfigError, ExportError, FinetuneError
from finetune_core.exporters.graphs import ONNX, compare, onnx_model, saved_onnx
from finetune_core.models.catalogue import backbone_info
from finetune_core.models.network import build_network, check_image_size
from finetune_core.models.timm_networks import TIMM, known_parameters
from finetune_core.models.weights import RANDOM

CLASSES = 7
SIDES = (64, 96, 128, 160, 192, 224, 256)  # pixels


def smallest(family: str) -> str:
    """The architecture with the fewest parameters."""
    return min(
        (f"{TIMM}{name}" for name in timm.list_models(module=family)),
        key=lambda name: known_parameters(name) or math.inf,
    )


def smallest_side(name: str) -> int:
    """Of the images that a network takes, pixels; its own where it takes none of ``SIDES``."""
    for side in SIDES:
        try:
            check_image_size(name, side)
        except ConfigError:
            continue
        return side
    return backbone_info(name).image_size


def exported(name: str, side: int) -> float:
    """The largest difference between a network and its export, as a share of the largest logit.

    Raises:
        FinetuneError: when it cannot be built or exported, or answers otherwise.
    """
    model = build_network(name, RANDOM, CLASSES, 0, side).model
    with tempfile.TemporaryDirectory() as folder:
        answer = saved_onnx(name, onnx_model(name, model, side), Path(folder, ONNX))
        difference: float = compare(model, side, "onnxruntime", answer)["largest_difference"]
    return difference


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", help="only families with one of these in their name")
    words = parser.parse_args().words
    torch.set_num_threads(1)
    kinds = Counter[str]()
    for family in timm.list_modules():
        if words and not any(word in family for word in words):
            continue
        name, began = smallest(family), time.process_time()
        side = smallest_side(name)
        row: dict[str, object] = {
            "family": family,
            "name": name,
            "side": side,
            "parameters": known_parameters(name),
        }
        try:
            found = {"kind": "exported", "difference": exported(name, side)}
        except ExportError as error:
            found = {"kind": "cannot be exported", "reason": str(error)}
        except FinetuneError as error:
            found = {"kind": "cannot be built", "reason": str(error)}
        kinds[str(found["kind"])] += 1
        print(
            json.dumps(row | found | {"seconds": round(time.process_time() - began, 1)}), flush=True
        )
    print(json.dumps(dict(kinds)))


if __name__ == "__main__":
    main()
