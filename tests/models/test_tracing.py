import math
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from threading import Event

import pytest
import torch
from torch import fx, nn

from finetune_core.evaluation.prediction.predictor import Predictor
from finetune_core.inspection.features import pool_stages
from finetune_core.models import catalogue
from finetune_core.models.network import build_network
from finetune_core.models.partition import trace
from finetune_core.models.tracing import _Tracer, trace_graph
from finetune_core.training.devices.device import choose_device
from finetune_core.training.step.compute import train_step

CPU = choose_device("cpu", "fp32")
# Wrapped functions, tensors created by code, attention, and modules that timm keeps out of traces.
TRACED = ["efficientnet_lite0", "swin_t", "maxvit_t", "vit_b_32"]
DEAR = [pytest.param(name, marks=pytest.mark.train) for name in TRACED[2:]]


class OwnTracer(fx.Tracer):
    """torch.fx's own tracer with the same leaves."""

    is_leaf_module = _Tracer.is_leaf_module
    _whole = frozenset()


def nodes(graph):
    return [
        (node.op, node.name, node.target, str(node.args), str(node.kwargs)) for node in graph.nodes
    ]


def prediction():
    network = build_network("mobilenet_v3_small", "none", 3, 0)
    predictor = Predictor(network, ("a", "b", "c"), CPU, 32)
    return lambda: predictor.predict_proba_tensor(torch.ones(2, 3, 32, 32))


def features():
    pooled, _ = pool_stages(build_network("squeezenet1_1", "none", 3, 0))
    return lambda: pooled(torch.ones(1, 3, 64, 64)).detach()


def tail_of_a_run():
    network = build_network("resnet18", "none", 3, 0)
    tail = trace(network.model, network.stages).part(4, None)
    return lambda: tail(torch.ones(2, 256, 2, 2)).detach()


def training_step():
    def step():
        model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 3))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
        train_step(model, torch.ones(2, 4), torch.tensor([0, 1]), optimizer, CPU, seed=1)
        return model[2].weight.detach()

    return step


@pytest.mark.train
def test_networks_compute_as_ever_while_other_threads_trace():
    works = [make() for make in (prediction, features, tail_of_a_run, training_step)]
    expected = [torch.as_tensor(work()) for work in works]
    models = [catalogue.create_on_meta(name).eval() for name in TRACED[:2]]
    over = Event()

    def compute(work, answer):
        times = 0
        while not over.is_set():
            assert torch.equal(torch.as_tensor(work()), answer)
            times += 1
        return times

    with ThreadPoolExecutor(len(works)) as pool:
        running = [pool.submit(compute, *one) for one in zip(works, expected, strict=True)]
        try:
            for model in models:
                trace_graph(model)
        finally:
            over.set()
        assert all(one.result() > 0 for one in running)


@pytest.mark.train
def test_networks_are_traced_by_several_threads_at_once():
    models = [catalogue.create_on_meta(name).eval() for name in TRACED[:2]]
    alone = [nodes(trace_graph(model)[1]) for model in models]
    with ThreadPoolExecutor(len(models)) as pool:
        together = list(pool.map(lambda model: nodes(trace_graph(model)[1]), models * 2))
    assert together == alone * 2


class Rounding(nn.Module):
    """A module that rounds sizes as timm's VOLO does."""

    def forward(self, x):
        return x.reshape(math.ceil(x.shape[0] / 2), math.floor(x.shape[1] * 2))


def test_rounded_sizes_are_part_of_the_graph():
    root, graph = trace_graph(Rounding())
    assert nodes(graph) == nodes(OwnTracer().trace(Rounding()))
    assert fx.GraphModule(root, graph)(torch.ones(4, 3)).shape == (2, 6)


@pytest.mark.parametrize("name", [*TRACED[:2], *DEAR])
def test_the_graph_is_the_one_that_torch_makes(name):
    model = catalogue.create_on_meta(name).eval()
    root, graph = trace_graph(model)
    expected = OwnTracer().trace(model)
    assert nodes(graph) == nodes(expected)
    named = {node.target for node in graph.nodes if node.op in ("call_module", "get_attr")}
    assert all(reduce(getattr, name.split("."), root) is not None for name in named)


@pytest.mark.train
def test_a_traced_network_is_left_as_it_was():
    def describe():
        return {path: (type(module), set(vars(module))) for path, module in model.named_modules()}

    model = catalogue.create_on_meta("maxvit_t").eval()
    before = describe()
    root, _ = trace_graph(model)
    assert describe() == before
    assert set(vars(root)) - set(vars(model)), "tensors that its code makes"
    assert root.stem is model.stem
