"""Modules without memory for their weights, to check what a configuration builds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

FILLS = {  # methods of tensors and functions of torch.nn.init that replace values and nothing else
    *("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "erfinv_", "fill_", "zero_"),
    *("add_", "mul_", "clamp_"),  # by numbers, in `trunc_normal_`
}


@contextmanager
def weightless() -> Iterator[None]:
    """Within this context, tensors are made on the meta device and initialisation is skipped.

    On that device torch computes shapes of random fills with code that takes 2.5 s to import.
    """
    with torch.device("meta"), _NoFills():
        yield


class _NoFills(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in FILLS:
            values: list[Any] = [*args, *kwargs.values()]  # functions of torch.nn.init come with keywords
            if values[0].is_meta and not any(isinstance(value, torch.Tensor) for value in values[1:]):
                return values[0]  # with other tensors, shapes could differ
        return func(*args, **kwargs)
