"""torch.fx tracing that is safe beside threads that run networks.

``torch.fx.Tracer.trace`` patches ``nn.Module.__call__`` and ``__getattr__`` for the whole process.
Meanwhile, another thread's forward pass fails or ends up in the graph. Here only the modules of a
copy send their calls to the tracer, and no other module is touched.
"""

import copy
import inspect
import math
from collections.abc import Collection
from itertools import chain
from threading import Lock
from typing import Any

import torch
from torch import fx, nn
from torch.fx._symbolic_trace import _autowrap_check, _patch_wrapped_functions, _Patcher

_trace_lock = Lock()


def trace_graph(model: nn.Module, whole: Collection[str] = ()) -> tuple[nn.Module, fx.Graph]:
    """Trace the computation of a network.

    Args:
        model: the network.
        whole: paths of modules that become single nodes.

    Returns:
        The root module and the graph. The root holds everything the graph names: the network's own
        modules and tensors, and the constants that its code creates.

    Raises:
        Exception: of nearly any kind, if control flow depends on values.
    """
    tracer = _Tracer(whole)
    graph = tracer.record(model)
    root = copy.copy(model)  # shares children, parameters and buffers with the network
    vars(root).update(tracer.constants())
    return root, graph


class _Value(fx.Proxy):
    """A proxy with ``__ceil__`` and ``__floor__``, so that ``math`` need not be patched."""

    def __ceil__(self) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", math.ceil, (self,), {})

    def __floor__(self) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", math.floor, (self,), {})


class _Tracer(fx.Tracer):
    """A tracer with these single nodes: modules without children, attention, and timm's leaves.

    timm's leaves are the modules and functions that timm keeps out of traces.
    """

    def __init__(self, whole: Collection[str]) -> None:
        # torch would patch ``math`` by default. Its annotation asks for one module.
        super().__init__(autowrap_modules=())  # type: ignore[arg-type]
        self.parameter_proxies: dict[str, fx.Proxy] = {}
        self._whole = frozenset(whole)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            module_qualified_name in self._whole
            or not any(m.children())
            or isinstance(m, (nn.MultiheadAttention, *_timm_leaves()))
        )

    def record(self, root: nn.Module) -> fx.Graph:
        """Trace a copy of ``root`` with the same tensors. Otherwise as torch's own ``trace``."""
        self.root = _recording_copy(root, self)
        self._names = set(vars(self.root))
        self.root_module_name = root._get_name()
        self.submodule_paths = {module: name for name, module in self.root.named_modules()}
        self.graph = fx.Graph(tracer_cls=type(self))
        self.tensor_attrs = {
            value: f"{path}.{name}" if path else name
            for path, module in self.root.named_modules()
            for name, value in vars(module).items()
            if isinstance(value, torch.Tensor)
        }
        # Other arguments of timm's networks have defaults.
        first = list(inspect.signature(type(self.root).forward).parameters)[1]
        images = self.create_proxy("placeholder", first, (), {})
        # Functions marked with fx.wrap, and those that timm keeps out of traces, are patched for
        # all threads. They behave as before unless they get a proxy. The lock only keeps other
        # traces out: the first trace to end would remove the patches of the rest.
        with _trace_lock, _Patcher() as patcher:
            _patch_wrapped_functions(patcher)
            for scope in _collect_globals(self.root):
                _autowrap_check(patcher, scope, _timm_functions())
            self.create_node(
                "output",
                "output",
                (self.create_arg(type(self.root).forward(self.root, images)),),
                {},
            )
        return self.graph

    def constants(self) -> dict[str, Any]:
        """Return the tensors that the network's code creates, by their names in the graph."""
        return {name: value for name, value in vars(self.root).items() if name not in self._names}


class _Recording(nn.Module):
    """Mixin for the modules of a copy, which sends calls and parameters to the copy's tracer."""

    _tracer: _Tracer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._tracer.call_module(self, super().__call__, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._tracer.getattr(name, super().__getattr__(name), self._tracer.parameter_proxies)


def _recording_copy(model: nn.Module, tracer: _Tracer) -> nn.Module:
    attributes = (
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Tensor)
    )
    memo = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers(), attributes)}
    twin = copy.deepcopy(model, memo)
    classes: dict[type, type] = {}
    for module in twin.modules():
        class_ = type(module)
        vars(module)["_tracer"] = tracer
        module.__class__ = classes.setdefault(
            class_, type(class_.__name__, (_Recording, class_), {})
        )
    return twin


def _timm_leaves() -> tuple[type[nn.Module], ...]:
    from timm.layers.conv2d_same import Conv2dSame
    from timm.models._features_fx import get_notrace_modules

    return (Conv2dSame, *get_notrace_modules())


def _timm_functions() -> set[int]:
    from timm.models._features_fx import get_notrace_functions

    return {id(function) for function in get_notrace_functions()}


def _collect_globals(root: nn.Module) -> list[dict[str, Any]]:
    """Return the global namespaces of the modules' code."""
    scopes = (getattr(type(module).forward, "__globals__", {}) for module in root.modules())
    return list({id(scope): scope for scope in scopes}.values())
