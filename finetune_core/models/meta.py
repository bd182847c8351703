"""Networks without any memory behind their tensors, for their structure only."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


@contextmanager
def allocating_on_meta() -> Iterator[None]:
    """Within: what networks allocate for their parameters is on the meta device."""
    with _BigTensorsOnMeta():
        yield


# What weights are initialised with. On tensors without numbers it changes nothing, and torch takes long to find that out.
_INITIALISES = {
    getattr(torch.Tensor, name) for name in ("uniform_", "normal_", "erfinv_", "clamp_", "mul_", "add_", "fill_", "zero_")
}


class _BigTensorsOnMeta(TorchFunctionMode):
    """Parameters go to the meta device, arithmetic stays: the RegNets compute their widths with torch.arange and read
    the result back, which ``torch.device("meta")`` would forbid."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones):
            kwargs["device"] = "meta"
        elif func in _INITIALISES and args[0].is_meta:
            return args[0]
        return func(*args, **kwargs)
