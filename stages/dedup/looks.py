"""The looks of an image: its perceptual hash and its mean colours, both from one decoding.

`PictureLooks` adds them as the column `looks`, in parallel. `dedup.exact` and `decontamination.decontaminate` use this
column; without it they decode the images themselves, in one process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.shard import need, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.phash import GRID, SIDE, colour_grid, grey, has_texture, hash_greys
from vlpipe.stages.common.pixels import decode
from vlpipe.stages.common.scores import with_columns

NUM_COLOURS = 3 * GRID * GRID
LOOK = pa.struct(
    [
        ("phash", pa.uint64()),  # null: the image has no texture, or cannot be decoded
        ("colours", pa.binary(NUM_COLOURS)),
        ("why", pa.string()),  # code of the decoding error (see `stages.common.pixels`), or null
    ]
)
BLOCK_IMAGES = 256  # images per batch of hashes


class Looks(NamedTuple):
    """The looks of B images. seen: the image has enough texture for a meaningful hash. why: code of the decoding error."""

    hashes: npt.NDArray[np.uint64]  # (B,)
    colours: npt.NDArray[np.uint8]  # (B, 48)
    seen: npt.NDArray[np.bool_]  # (B,)
    why: npt.NDArray[np.object_]  # (B,) of str or None

    def take(self, rows: npt.NDArray[np.int64]) -> Looks:
        return Looks(self.hashes[rows], self.colours[rows], self.seen[rows], self.why[rows])


@dataclass(frozen=True, kw_only=True)
class PictureLooks(MapStage):
    """Adds `looks`: struct of pHash (64 bits, as `imagehash.phash`), mean colours of a 4 x 4 grid, and the decoding error.

    Takes 3 ms on one core for 640 x 480 pixels. No row is dropped: an undecodable image is compared by its bytes only.
    """

    NAME: ClassVar[str] = "dedup.looks:PictureLooks"
    READS_HEAVY: ClassVar[tuple[str, ...]] = ("image",)

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "dedup.looks", id=pa.string(), image=pa.binary())
        return with_field(inp, pa.field("looks", LOOK))

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda rows: with_columns(rows, looks=to_arrow(look_at(rows["image"].to_pylist())))


def look_at(images: Sequence[bytes | None], max_pixels: int | None = None) -> Looks:
    """Returns the looks of encoded images, decoded one at a time. max_pixels: None (no limit) for stored images."""
    blocks = (images[start : start + BLOCK_IMAGES] for start in range(0, len(images), BLOCK_IMAGES))
    return joined([_looks_of_block(block, max_pixels) for block in blocks])


def _looks_of_block(images: Sequence[bytes | None], max_pixels: int | None) -> Looks:
    greys = np.zeros((len(images), SIDE, SIDE), np.uint8)
    colours = np.zeros((len(images), NUM_COLOURS), np.uint8)
    why = np.full(len(images), None, object)
    for row, data in enumerate(images):
        try:
            image = decode(data or b"", max_pixels=max_pixels)
        except RowFault as fault:
            why[row] = fault.why
        else:
            greys[row], colours[row] = grey(image), colour_grid(image)
    return Looks(hash_greys(greys), colours, has_texture(greys), why)


def joined(parts: Sequence[Looks]) -> Looks:
    none = Looks(
        np.empty(0, np.uint64),
        np.empty((0, NUM_COLOURS), np.uint8),
        np.empty(0, np.bool_),
        np.empty(0, object),
    )
    return Looks(*(np.concatenate(part) for part in zip(none, *parts, strict=True)))


def to_arrow(looks: Looks) -> pa.StructArray:
    colours = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(NUM_COLOURS), len(looks.colours), [None, pa.py_buffer(np.ascontiguousarray(looks.colours))]
    )
    columns = [pa.array(looks.hashes, mask=~looks.seen), colours, pa.array(looks.why, pa.string())]
    return pa.StructArray.from_arrays(columns, fields=list(LOOK))


def from_arrow(column: pa.ChunkedArray) -> Looks:
    """Converts the column `looks` to arrays. A row with null has seen=False, so its image matches no other."""
    hashes, colours, why = (pc.struct_field(column, name) for name in ("phash", "colours", "why"))
    packed = b"".join(pc.fill_null(colours, bytes(NUM_COLOURS)).to_pylist())
    return Looks(
        np.asarray(pc.fill_null(hashes, 0), np.uint64),
        np.frombuffer(packed, np.uint8).reshape(-1, NUM_COLOURS),
        np.asarray(pc.is_valid(hashes)),
        np.array([*why.to_pylist(), None], object)[:-1],
    )
