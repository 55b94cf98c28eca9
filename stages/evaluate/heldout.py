"""Reads held-out images with their reference captions, for evaluation."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.shard import Reject, need
from vlpipe.pipeline.stage import Job
from vlpipe.stages.common.batches import Pixels, read_images
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.inference.ahead import Ahead

Key = tuple[str, tuple[str, ...]]  # row id, its captions


def need_heldout(inp: pa.Schema, who: str) -> None:
    """Raises SchemaError unless the input has `id`, `texts` and `image`. who: name of the stage, for the message."""
    need(inp, who, id=pa.string(), texts=TEXTS, image=pa.binary())


def heldout(
    job: Job, source: str, image_size: int, rejects: list[Reject], ahead: Ahead | None = None
) -> Iterator[tuple[Key, Pixels]]:
    """Yields ((id, captions of `source`), pixels (3, S, S)) in row order, with S = `image_size`.

    Images that cannot be read or have no caption of `source` are added to `rejects` instead. ahead: whose threads decode.
    """
    for data in job.inputs:
        for table in data.batches(["id", "texts"], ["image"]):
            ids, texts = table["id"].to_pylist(), table["texts"].to_pylist()
            for row, pixels in read_images(table, image_size, rejects, ahead):
                captions = tuple(t["text"] for t in texts[row] or () if t["source"] == source)
                if captions:
                    yield (ids[row], captions), pixels
                else:
                    rejects.append(Reject(ids[row], "filtered", "no_caption", f"it has no {source} text"))


def nothing_to_evaluate(source: str, rejects: list[Reject]) -> VlpipeError:
    """Returns the error to raise if `heldout` yielded nothing. source, rejects: those given to it."""
    first = f"; the first of {len(rejects)} rejected: {rejects[0].why} {rejects[0].detail}" if rejects else ""
    return VlpipeError(f"no readable image with a {source} text to evaluate on{first}")
