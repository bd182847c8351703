"""torch.fx tracing beside other threads that use networks.

``torch.fx.Tracer.trace`` patches ``nn.Module.__call__`` and ``__getattr__`` for the whole process, so that meanwhile another
thread's forward pass fails or ends up in the graph. Here the modules of a copy hand their calls to the tracer, and no other
module is touched.
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

_one_at_a_time = Lock()


def trace_graph(model: nn.Module, whole: Collection[str] = ()) -> tuple[nn.Module, fx.Graph]:
    """What a network computes, node by node.

    Args:
        whole: paths of modules that are single nodes.

    Returns:
        The root that the graph's names are looked up in (the network's own modules and tensors, with the constants that its
        code makes), and the graph.

    Raises:
        Exception: of nearly any kind, where control flow depends on values.
    """
    tracer = _Tracer(whole)
    graph = tracer.record(model)
    root = copy.copy(model)  # shares its children, parameters and buffers with the network
    vars(root).update(tracer.constants())
    return root, graph


class _Value(fx.Proxy):
    """A value of the graph. ``math.ceil`` and ``math.floor`` ask their argument, so that they need no patch."""

    def __ceil__(self) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", math.ceil, (self,), {})

    def __floor__(self) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", math.floor, (self,), {})


class _Tracer(fx.Tracer):
    """Modules without children, attention, and the modules and functions that timm keeps out of traces are single nodes."""

    def __init__(self, whole: Collection[str]) -> None:
        super().__init__(autowrap_modules=())  # type: ignore[arg-type]  # torch would patch ``math``; its annotation asks for one module
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
        """As torch's own ``trace``, but of a copy with the same tensors."""
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
        # what else timm's networks take has a default
        first = list(inspect.signature(type(self.root).forward).parameters)[1]
        images = self.create_proxy("placeholder", first, (), {})
        # Functions that are marked with fx.wrap, or that timm keeps out of traces, are patched for everyone, but do the same as ever
        # unless given a proxy. The lock is for other traces alone: the first to end would take the patches away from the rest.
        with _one_at_a_time, _Patcher() as patcher:
            _patch_wrapped_functions(patcher)
            for scope in _scopes(self.root):
                _autowrap_check(patcher, scope, _timm_functions())
            self.create_node(
                "output",
                "output",
                (self.create_arg(type(self.root).forward(self.root, images)),),
                {},
            )
        return self.graph

    def constants(self) -> dict[str, Any]:
        """Tensors that the code itself makes, by the names that the graph has for them."""
        return {name: value for name, value in vars(self.root).items() if name not in self._names}


class _Recording(nn.Module):
    """Mixed into the classes of the modules of a copy: they hand calls and parameters to the copy's tracer."""

    _tracer: _Tracer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._tracer.call_module(self, super().__call__, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._tracer.getattr(name, super().__getattr__(name), self._tracer.parameter_proxies)


def _recording_copy(model: nn.Module, tracer: _Tracer) -> nn.Module:
    held = (
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Tensor)
    )
    same = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers(), held)}
    twin = copy.deepcopy(model, same)
    classes: dict[type, type] = {}
    for module in twin.modules():
        own = type(module)
        vars(module)["_tracer"] = tracer
        module.__class__ = classes.setdefault(own, type(own.__name__, (_Recording, own), {}))
    return twin


def _timm_leaves() -> tuple[type[nn.Module], ...]:
    from timm.layers.conv2d_same import Conv2dSame
    from timm.models._features_fx import get_notrace_modules

    return (Conv2dSame, *get_notrace_modules())


def _timm_functions() -> set[int]:
    from timm.models._features_fx import get_notrace_functions

    return {id(function) for function in get_notrace_functions()}


def _scopes(root: nn.Module) -> list[dict[str, Any]]:
    """The globals of the modules' code."""
    found = (getattr(type(module).forward, "__globals__", {}) for module in root.modules())
    return list({id(scope): scope for scope in found}.values())
