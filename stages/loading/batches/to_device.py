"""Moves training batches to the device while the step before computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from vlpipe.models.interface.batch import Batch


def to_device(
    batches: Iterator[Batch],
    device: torch.device,
    copy: Callable[[Batch, torch.device], Batch],
    finish: Callable[[Batch], Batch],
) -> Iterator[Batch]:
    """Yields each batch as `copy` puts it on `device`, changed by `finish` there.

    On a GPU the next batch is copied on a stream of its own while the current one is used; its tensors must be in pinned
    memory.
    """
    if device.type != "cuda":
        for batch in batches:
            yield finish(copy(batch, device))
        return
    import torch

    copies = torch.cuda.Stream(device)

    def copied(batch: Batch) -> Batch:
        with torch.cuda.stream(copies):
            return copy(batch, device)

    def used(value: torch.Tensor) -> torch.Tensor:
        value.record_stream(
            torch.cuda.current_stream(device)
        )  # its memory is free after what computes with it
        return value

    following: Batch | BaseException = copied(next(batches))
    while not isinstance(following, BaseException):
        torch.cuda.current_stream(device).wait_stream(copies)
        current = following.map(used)
        try:
            following = copied(next(batches))
        except BaseException as error:
            following = error  # of a batch that training may never need: raised when it is asked for
        yield finish(current)
    raise following
