"""The picture of a row, decoded on the GPU by nvJPEG. Needs torchvision with CUDA (extra `gpu`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.formats.jpeg import plain_size
from vlpipe.stages.loading.augment import crop_box, is_flipped
from vlpipe.stages.loading.makers.base import EXTRA, Item
from vlpipe.stages.loading.makers.image import Image
from vlpipe.stages.loading.rows import Row

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vlpipe.models.interface.batch import Stream

ENCODED = LENGTH, BOX, FLIP = "length", "box", "flip"  # in `extra` until the pictures are decoded


@dataclass(frozen=True, kw_only=True)
class NvJpegImage(Image):
    """As `Image`, but JPEGs are decoded, cut and resized on the training device.

    In YAML: `streams: {image: {use: "nvjpeg:NvJpegImage"}}`. Crops and flips are drawn as `Image` draws them; pixels differ
    by some levels, as decoders and filters do. Pictures of other formats, and JPEGs with an orientation or with four
    channels, are prepared on the CPU. Raises ValueError for RandAugment, whose operations are the CPU's, and without
    torchvision.
    """

    def __post_init__(self) -> None:
        if self.augment is not None and self.augment.randaugment is not None:
            raise ValueError(
                "streams.image: NvJpegImage has no randaugment; leave it out, or use image:Image"
            )
        try:
            import torchvision.io  # noqa: F401
        except ImportError as error:
            raise ValueError(
                "streams.image: NvJpegImage needs torchvision: pip install 'vlpipe[gpu]'"
            ) from error

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        encoded = row.columns["image"]
        size = plain_size(encoded) if isinstance(encoded, bytes) else None
        if size is None:  # a box of zeros: pixels
            pixels = super().__call__(row, text, rng)["data"].reshape(-1)
            return {"data": pixels, f"{EXTRA}{BOX}": np.zeros(4, np.int64), f"{EXTRA}{FLIP}": np.bool_(False)}
        box, flip = (0, 0, *size), False
        if self.augment is not None:
            box = (
                crop_box(*size, self.augment.crop_scale, rng) if self.augment.crop_scale is not None else box
            )
            flip = is_flipped(self.augment, text, rng)
        data = np.frombuffer(encoded, np.uint8)
        return {"data": data, f"{EXTRA}{BOX}": np.array(box, np.int64), f"{EXTRA}{FLIP}": np.bool_(flip)}

    def collate(self, items: Sequence[Item]) -> Stream:
        """Returns a stream whose data are the bytes of all items, one after the other; `extra` has the length of each."""
        import torch

        lengths = [{**item, "data": np.int64(len(item["data"]))} for item in items]
        found = super().collate(lengths)
        data = torch.from_numpy(np.concatenate([item["data"] for item in items]))
        return replace(found, data=data, extra={**found.extra, LENGTH: found.data})

    def to_device(self, stream: Stream, device: torch.device) -> Stream:
        """Decodes: a stream of `collate` -> pixels (B, 3, size, size) uint8 on `device`; all else is moved there."""
        import torch
        from torchvision.io import ImageReadMode, decode_jpeg

        lengths, boxes, flips = (stream.extra[name].tolist() for name in ENCODED)
        found: list[Any] = list(stream.data.split(lengths))
        jpegs = [k for k, box in enumerate(boxes) if any(box)]
        if jpegs:
            try:
                decoded = decode_jpeg([found[k] for k in jpegs], mode=ImageReadMode.RGB, device=device)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise VlpipeError(
                    f"training: nvJPEG cannot decode a JPEG of this batch ({error}); use image:Image in streams.image"
                ) from error
            for k, pixels in zip(jpegs, decoded, strict=True):
                found[k] = part(pixels, boxes[k], self.size, flips[k])
        for k in set(range(len(found))) - set(jpegs):
            found[k] = found[k].view(3, self.size, self.size).to(device, non_blocking=True)
        rest = {name: value for name, value in stream.extra.items() if name not in ENCODED}
        return super().to_device(replace(stream, data=torch.stack(found), extra=rest), device)

    def on_device(self, stream: Stream) -> Stream:
        is_encoded = LENGTH in stream.extra
        return super().on_device(self.to_device(stream, stream.data.device) if is_encoded else stream)


def part(pixels: Tensor, box: Sequence[int], size: int, flip: bool) -> Tensor:
    """Returns the part of pixels (3, H, W) uint8 in `box` (left, top, right, bottom), resized to (3, size, size).

    The filter is bicubic.
    """
    import torch
    import torch.nn.functional as F

    left, top, right, bottom = box
    cut = pixels[:, top:bottom, left:right].flip(2) if flip else pixels[:, top:bottom, left:right]
    resized = F.interpolate(cut[None].float(), (size, size), mode="bicubic", antialias=True)[0]
    return resized.round().clamp(0, 255).to(torch.uint8)
