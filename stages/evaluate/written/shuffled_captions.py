"""Scores captions that a model writes from what it made of another image: what is left is due to its prior."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

from vlpipe.pipeline.shard import Reject
from vlpipe.pipeline.stage import Job
from vlpipe.stages.common.batches import encode_images, fixed_batches
from vlpipe.stages.evaluate.captions import Captions
from vlpipe.stages.evaluate.heldout import Key, heldout
from vlpipe.stages.inference.ahead import Ahead

if TYPE_CHECKING:
    from vlpipe.stages.common.model import Loaded

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, kw_only=True)
class ShuffledCaptions(Captions):
    """As `Captions`; each caption is written from the encoding of the image before it, the first one's from that of the
    last.

    BLIP-2's encoding is the output of its queries.
    """

    NAME: ClassVar[str] = "evaluate.written.shuffled_captions:ShuffledCaptions"
    VERSION: ClassVar[int] = 1

    def _captions(self, job: Job, model: Loaded, rejects: list[Reject]) -> list[tuple[Key, str]]:
        found: list[tuple[Key, str]] = []
        with Ahead(self.decode_workers, model.is_on_gpu) as ahead:
            images = heldout(job, self.source, model.image_size, rejects, ahead)
            encoded = moved_on(encode_images(images, model.encode_images, self.batch_size, ahead))
            for batch, num_real in fixed_batches(encoded, self.batch_size):
                captions = self._decode(model, [tokens for _, tokens in batch])
                found += zip([key for key, _ in batch[:num_real]], captions[:num_real], strict=True)
        return found


def moved_on(pairs: Iterable[tuple[K, V]]) -> Iterator[tuple[K, V]]:
    """Yields each key with the value before its own, and last the first key with the last value. One alone keeps its own."""
    pairs = iter(pairs)
    first = next(pairs, None)
    if first is None:
        return
    before = first[1]
    for key, value in pairs:
        yield key, before
        before = value
    yield first[0], before
