"""Rows of pictures for people: one image of several panels side by side, their names, and lines of text."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vlpipe.pipeline.shard import ref
from vlpipe.stages.common.pixels import MEAN, STD
from vlpipe.stages.common.row import IMAGE_FIELDS

Panel = npt.NDArray[np.uint8]  # (H, W, 3)
GAP = 2  # white pixels between panels

PICTURES = pa.schema(
    [
        ("id", pa.string()),
        ref("rows", pa.list_(pa.string()), is_origin=True),  # ids of the rows that the picture is of
        ("title", pa.string()),  # such as the text that was drawn; null for none
        ("panels", pa.list_(pa.string())),  # what the parts show, from left to right, row by row
        ("lines", pa.list_(pa.string())),  # shown below the picture
        *IMAGE_FIELDS,
    ]
)


def picture(
    id_: str,
    rows: Sequence[str],
    panels: Sequence[tuple[str, Panel]],
    *,
    title: str | None = None,
    lines: Sequence[str] = (),
    columns: int | None = None,
) -> dict[str, Any]:
    """Returns a row PICTURES. panels: (name, image), all of one size; columns: of them per row, None for all in one."""
    png, (width, height) = sheet([panel for _, panel in panels], columns or len(panels))
    return {
        "id": id_,
        "rows": list(rows),
        "title": title,
        "panels": [name for name, _ in panels],
        "lines": list(lines),
        "sha256": hashlib.sha256(png).hexdigest(),
        "format": "PNG",
        "width": width,
        "height": height,
        "image": png,
    }


def sheet(panels: Sequence[Panel], columns: int) -> tuple[bytes, tuple[int, int]]:
    """Returns a PNG of the panels in rows of `columns`, and its width and height."""
    from PIL import Image

    height, width = panels[0].shape[:2]
    columns = min(columns, len(panels))
    num_rows = -(-len(panels) // columns)
    shape = (num_rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3)
    whole = np.full(shape, 255, np.uint8)
    for k, panel in enumerate(panels):
        top, left = k // columns * (height + GAP), k % columns * (width + GAP)
        whole[top : top + height, left : left + width] = panel
    buffer = io.BytesIO()
    Image.fromarray(whole).save(buffer, "PNG")
    return buffer.getvalue(), (shape[1], shape[0])


def shown(pixels: npt.NDArray[np.floating[Any]]) -> Panel:
    """(3, H, W) from 0 to 1 -> (H, W, 3) bytes; values beyond are clipped, NaN is black."""
    clipped = np.nan_to_num(np.clip(pixels, 0, 1), nan=0.0)
    return np.ascontiguousarray((255 * clipped).round().astype(np.uint8).transpose(1, 2, 0))


def denormalised(pixels: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    """(..., 3, H, W), normalised as all streams of images are -> from 0 to 1."""
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (MEAN, STD))
    return pixels * std + mean


def words_with_shares(found: Mapping[str, float]) -> str:
    """Returns `word 12.3 %, ...` of probabilities."""
    return ", ".join(f"{word} {100 * value:.1f} %" for word, value in found.items())
