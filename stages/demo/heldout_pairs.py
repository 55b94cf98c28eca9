"""Which held-out captions of a world are right for which of its held-out images: most are right for several.

Even a model that knows everything then finds the image that a caption was written for by chance alone. In the world of
`capfilt_ablation.yaml` (seed 0, 300 captions drawn), a caption is right for 3.1 of the 2,000 held-out images, and such a
model has an expected IR@1 of 0.57.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from vlpipe.pipeline.shard import ShardWriter
from vlpipe.pipeline.stage import Job
from vlpipe.stages.common.row import RESULTS
from vlpipe.stages.demo.check_text import holds, parse
from vlpipe.stages.demo.scenes import Scene
from vlpipe.stages.demo.world import World

PAIRS = pa.schema([("url", pa.string()), ("text", pa.string())])
FILE = "pairs.parquet"


@dataclass(frozen=True, kw_only=True)
class HeldoutPairs(World):
    """Artifact pairs.parquet (PAIRS): each held-out image with each held-out caption that is right for it.

    Its parameters are those of the world; it draws the same scenes again. Emits RESULTS `right_images_per_caption` and
    `captions_per_image`: means over the distinct held-out captions and over the images.
    """

    NAME: ClassVar[str] = "demo.heldout_pairs:HeldoutPairs"
    ROWS_ARE: ClassVar[str] = "figures"

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return RESULTS

    def run(self, job: Job) -> None:
        drawn = list(self.human("human_eval", self.num_eval, stream=2))
        scenes = [one.scene for one in drawn]
        texts = sorted({caption for one in drawn for caption in one.captions})
        urls: list[str] = []
        found: list[str] = []
        for text, images in zip(texts, _right_images(texts, scenes), strict=True):
            urls += [drawn[image].file_name for image in images]
            found += [text] * len(images)
        with ShardWriter(str(Path(job.artifacts) / FILE), PAIRS) as writer:
            writer.write(pa.table([urls, found], schema=PAIRS))
        means = {"right_images_per_caption": len(texts), "right_captions_per_image": len(scenes)}
        job.emit(
            pa.Table.from_pylist(
                [{"name": n, "value": len(found) / num, "num_rows": num} for n, num in means.items()], RESULTS
            )
        )


def _right_images(texts: Sequence[str], scenes: Sequence[Scene]) -> Iterator[list[int]]:
    """Yields the indices of the scenes that each text is right for. Scenes without the shape that it names are not asked."""
    of_shape: dict[str, list[int]] = {}
    for index, scene in enumerate(scenes):
        for shape in {thing.shape for thing in scene.things}:
            of_shape.setdefault(shape, []).append(index)
    for text in texts:
        claims = parse(text) or []
        shapes = claims[0].said.get("shape", frozenset()) if claims else frozenset[str]()
        asked = of_shape.get(next(iter(shapes)), []) if len(shapes) == 1 else []
        yield [index for index in asked if holds(claims, scenes[index])]
