"""What a maker is, and how samples of different length become one padded tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from vlpipe.stages.loading.rows import Row

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vlpipe.models.interface.batch import Stream

EXTRA, TARGET = (
    "extra/",
    "target/",
)  # prefixes of the keys of an item that go into `Stream.extra` and `.target`
ROW, SAYS = "row", "says"  # keys of notes of an item, for corruptors: the row's `image_id`; its text, folded
IGNORE = -100  # `models.interface.batch.IGNORE`, without importing torch

Item = dict[str, Any]  # one sample of one stream: the array `data`, and further ones by name
Sample = dict[str, Item]  # stream name -> item


class Maker:
    """Base class of makers: from a row to one sample of a stream, and from B samples to a `Stream`.

    COLUMNS: the columns it reads, heavy ones included. NEEDS_TEXT: whether it reads the sample's text; rows with no usable
    text then have no sample. PADDED: whether samples differ in length. SHARES: makers with the same name here draw the same
    for a sample, such as which clips of a video; "": each stream draws for itself.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ()
    NEEDS_TEXT: ClassVar[bool] = False
    PADDED: ClassVar[bool] = False
    SHARES: ClassVar[str] = ""

    @property
    def fill(self) -> float:
        """The value that pads `data`."""
        return 0

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        """Returns the item of one row; `text` is the one drawn for this sample ("" if the recipe uses none).

        Keys that start with `extra/` or `target/` become tensors of the stream; others, for corruptors alone, do not.
        """
        raise NotImplementedError

    def num_positions(self, row: Row, text: str) -> float:
        """Returns about how many positions a sample's item takes, without making it; 0 if all take the same number."""
        return 0.0

    def count_positions(self, row: Row, text: str) -> float:
        """Returns how many positions a sample's item takes, exactly where its making is cheap; else as `num_positions`."""
        return self.num_positions(row, text)

    def collate(self, items: Sequence[Item]) -> Stream:
        """Returns B items as one `Stream`, padded to the longest; integer targets are padded with IGNORE."""
        from vlpipe.models.interface.batch import Stream

        join = padded if self.PADDED else stacked
        mask = lengths_mask([item["data"] for item in items]) if self.PADDED else None
        target = _with_prefix(items, TARGET, IGNORE)
        return Stream(
            join([item["data"] for item in items], self.fill),
            mask,
            extra=_with_prefix(items, EXTRA, 0),
            target=target,
            places=_places(mask, target),
        )

    def to_device(self, stream: Stream, device: torch.device) -> Stream:
        """Returns a stream of `collate` on the training device; copies from pinned memory are asynchronous.

        On a GPU this runs while the step before computes.
        """
        return stream.map(lambda value: value.to(device, non_blocking=True))

    def on_device(self, stream: Stream) -> Stream:
        """Returns a stream of `to_device` as models read it.

        What is cheap there and makes the copy larger is done here, not in `collate`.
        """
        return stream


def _places(mask: Tensor | None, target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the flat indices of real positions ("mask") and of those that each target of several per sample chooses."""
    import torch

    from vlpipe.models.interface.batch import flat_places

    found = {} if mask is None else {"mask": flat_places(mask)}
    for name, values in target.items():
        if values.ndim == 2 and values.dtype in (torch.bool, torch.int64):
            found[name] = flat_places(values if values.dtype == torch.bool else values != IGNORE)
    return found


def note(value: int | str) -> npt.NDArray[Any]:
    """Returns a value that corruptors read, as an array (1,): all values of an item are arrays."""
    return np.array([value])


def folded(text: str) -> str:
    """Returns the text without case and with single spaces: equal for texts that say the same word for word."""
    return " ".join(text.casefold().split())


def _with_prefix(items: Sequence[Item], prefix: str, fill: int) -> dict[str, Tensor]:
    found = {}
    for key in items[0]:
        if key.startswith(prefix):
            arrays = [np.asarray(item[key]) for item in items]
            is_id = np.issubdtype(arrays[0].dtype, np.integer)
            join = padded if arrays[0].ndim else stacked
            found[key.removeprefix(prefix)] = join(arrays, fill if is_id else 0)
    return found


def padded(arrays: Sequence[Any], fill: float) -> Tensor:
    """Returns arrays (L_i, ...) as one tensor (B, max L, ...), padded with `fill` on the right."""
    import torch

    longest = max(1, *(len(a) for a in arrays))
    out = np.full((len(arrays), longest, *arrays[0].shape[1:]), fill, arrays[0].dtype)
    for row, array in enumerate(arrays):
        out[row, : len(array)] = array
    return torch.from_numpy(out)


def stacked(arrays: Sequence[Any], fill: float) -> Tensor:
    """Returns arrays of one shape as one tensor (B, ...)."""
    import torch

    return torch.from_numpy(np.stack(arrays))


def lengths_mask(arrays: Sequence[Any]) -> Tensor:
    """Returns (B, max L) bool, True where an array has data."""
    import torch

    lengths = torch.tensor([len(a) for a in arrays])
    return torch.arange(max(1, int(lengths.max())))[None] < lengths[:, None]
