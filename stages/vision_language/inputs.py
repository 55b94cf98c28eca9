"""Reads the images of rows and makes the model's input of them, in threads, while the model computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import pyarrow as pa

from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.shard import Reject
from vlpipe.stages.common.pixels import decode
from vlpipe.stages.inference.ahead import Ahead, Room
from vlpipe.stages.vision_language.model import Arrays, VisionLanguageModel

INPUT_BYTES = 8 * 2**20  # of one row's arrays, roughly


def read_inputs(
    table: pa.Table,
    model: VisionLanguageModel,
    texts: Sequence[Sequence[str]],
    rejects: list[Reject],
    ahead: Ahead,
) -> Iterator[tuple[int, list[Arrays]]]:
    """Yields (row number, input for each of its texts) of images that can be decoded; appends the others to `rejects`.

    texts: for each row its prompts, as `worded`. A row without one is not decoded, and not yielded.
    """
    ids = table["id"].to_pylist()
    rows = [row for row, some in enumerate(texts) if some]
    images = (table["image"][row] for row in rows)
    fn = partial(_read, model, ahead.room)
    pairs = zip(images, (texts[row] for row in rows), strict=True)
    for row, found in zip(rows, ahead.map(fn, pairs, INPUT_BYTES), strict=True):
        if isinstance(found, RowFault):
            rejects.append(Reject(ids[row], "fault", found.why, found.detail))
        else:
            yield row, found


def _read(
    model: VisionLanguageModel, room: Room, item: tuple[pa.Scalar, Sequence[str]]
) -> list[Arrays] | RowFault:
    data, texts = item
    held: list[int] = []
    try:
        return model.prepared(decode(data.as_py(), admit=lambda size: held.append(room.take(size))), texts)
    except RowFault as fault:
        return RowFault(fault.why, fault.detail)  # without the traceback, which holds the image
    finally:
        room.give(sum(held))
