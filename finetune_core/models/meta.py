"""Networks on the meta device, without memory for their tensors, to look at their structure."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode


@contextmanager
def allocate_on_meta() -> Iterator[None]:
    """Allocate parameters on the meta device within the block."""
    with _BigTensorsOnMeta():
        yield


# Initialisers. On tensors without data they change nothing, but torch takes long to find that out.
_INITIALISERS = {
    getattr(torch.Tensor, name)
    for name in ("uniform_", "normal_", "erfinv_", "clamp_", "mul_", "add_", "fill_", "zero_")
}


class _BigTensorsOnMeta(TorchFunctionMode):
    """Allocates parameters on the meta device and leaves other arithmetic on the CPU.

    RegNets compute their widths with torch.arange and read the result back.
    ``torch.device("meta")`` would forbid that.
    """

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
        elif func in _INITIALISERS and args[0].is_meta:
            return args[0]
        return func(*args, **kwargs)


@contextmanager
def skip_norms_on_meta() -> Iterator[None]:
    """Skip the shape inference of normalisation layers on the meta device within the block.

    torch infers their shapes in Python, which takes half of the time of a forward pass.
    """
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
    """Return whether ``func`` is a normalisation of matching shapes.

    torch rejects a mismatch itself.
    """
    images: torch.Tensor = args[0]
    expected = args[1]
    if func is functional.layer_norm:
        return tuple(images.shape[-len(expected) :]) == tuple(expected)
    return (
        func is functional.batch_norm and expected is not None and images.shape[1] == len(expected)
    )
