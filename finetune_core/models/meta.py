"""Networks without any memory behind their tensors, for their structure only."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode


@contextmanager
def allocating_on_meta() -> Iterator[None]:
    """Within: what networks allocate for their parameters is on the meta device."""
    with _BigTensorsOnMeta():
        yield


# What weights are initialised with. On tensors without numbers it changes nothing, and torch takes long to find that out.
_INITIALISES = {
    getattr(torch.Tensor, name)
    for name in ("uniform_", "normal_", "erfinv_", "clamp_", "mul_", "add_", "fill_", "zero_")
}


class _BigTensorsOnMeta(TorchFunctionMode):
    """Parameters go to the meta device, arithmetic stays: the RegNets compute their widths with torch.arange and read
    the result back, which ``torch.device("meta")`` would forbid."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones):
            kwargs["device"] = "meta"
        elif func in _INITIALISES and args[0].is_meta:
            return args[0]
        return func(*args, **kwargs)


@contextmanager
def norms_keep_shapes() -> Iterator[None]:
    """Within: normalization on the meta device takes no time. torch derives its shapes in Python, in half of the time of a forward pass."""
    with _NormsKeepShapes():
        yield


class _NormsKeepShapes(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if (
            len(args) > 1
            and isinstance(args[0], torch.Tensor)
            and args[0].is_meta
            and _keeps_shape(func, args)
        ):
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def _keeps_shape(func: object, args: tuple[Any, ...]) -> bool:
    """Whether it is normalization that fits; what does not fit is for torch to refuse."""
    images: torch.Tensor = args[0]
    expected = args[1]
    if func is functional.layer_norm:
        return tuple(images.shape[-len(expected) :]) == tuple(expected)
    return (
        func is functional.batch_norm and expected is not None and images.shape[1] == len(expected)
    )
