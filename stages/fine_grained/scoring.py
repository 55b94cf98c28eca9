"""Scores texts of images by a model: the base of the stages that ask which of several texts fits, or whether one fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Reject, need
from vlpipe.pipeline.stage import GatherStage, Job, Stage
from vlpipe.stages.common.batches import (
    Pixels,
    batch_size_problems,
    encode_images,
    fixed_batches,
    read_images,
)
from vlpipe.stages.common.row import RESULTS
from vlpipe.stages.evaluate.items import ITEMS_REFERENCES
from vlpipe.stages.filter.itm import match_logits
from vlpipe.stages.inference.ahead import Ahead
from vlpipe.stages.inference.stage import RunsModel

if TYPE_CHECKING:
    import torch

    from vlpipe.stages.common.model import Loaded

K = TypeVar("K")


@dataclass(frozen=True, eq=False)
class Asked:
    """The texts to score for one image. id: of its row; about: the value of the row's column of tests."""

    id: str
    about: Any
    texts: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class ScoresTexts(RunsModel, GatherStage):
    """Base of the stages that score texts of images.

    score: `match`, the log-odds of P(match) by the image-text matching head, which has no ties where P(match) rounds to 1;
    or `similarity`, the cosine of the embeddings, as for models without such a head (CLIP).
    """

    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True
    ARTIFACT_REFERENCES: ClassVar[Mapping[str, tuple[str, ...]]] = ITEMS_REFERENCES
    COLUMN: ClassVar[pa.Field]  # of the rows: the tests of an image

    model: Weights
    score: Literal["match", "similarity"] = "match"
    batch_size: int = 64
    max_text_length: int = 30  # tokens, including [CLS] and [SEP]; as in BLIP

    def schema(self, inp: pa.Schema) -> pa.Schema:
        columns = {"id": pa.string(), self.COLUMN.name: self.COLUMN.type, "image": pa.binary()}
        need(inp, type(self).NAME.partition(":")[0], **columns)
        return RESULTS

    def preflight(self) -> list[str]:
        return batch_size_problems(self.batch_size) + self.worker_problems()

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, self._needs())

    def _needs(self) -> list[type]:
        from vlpipe.models.interface.capabilities import EmbedsImages, EmbedsTexts, Matches

        return [Matches] if self.score == "match" else [EmbedsImages, EmbedsTexts]

    def scored(
        self, job: Job, texts_of: Callable[[Any], Sequence[str]], rejects: list[Reject]
    ) -> Iterator[tuple[Asked, list[float]]]:
        """Yields the rows with the scores of their texts, in row order. texts_of: the value of COLUMN -> texts.

        Images that cannot be read or have no text are added to `rejects` instead. Raises VlpipeError for a score that is not
        finite, and if there is nothing to score.
        """
        from vlpipe.stages.common.model import load

        model = load(self.model, self.max_text_length, self._needs(), self.precision)
        num_rows = 0
        with Ahead(self.decode_workers, model.is_on_gpu) as ahead:
            images = self._images(job, texts_of, model.image_size, rejects, ahead)
            encode = model.encode_images if self.score == "match" else model.embed_images
            encoded = encode_images(images, encode, self.batch_size, ahead)
            pairs = ((asked, image, text) for asked, image in encoded for text in asked.texts)
            for asked, group in groupby(self._scores(model, pairs), key=lambda one: one[0]):
                scores = [score for _, score in group]
                if not all(map(math.isfinite, scores)):
                    raise VlpipeError(
                        f"the model in {self.model.path} gives a score that is not finite for row {asked.id}"
                    )
                num_rows += 1
                yield asked, scores
        if not num_rows:
            first = (
                f"; the first of {len(rejects)} rejected: {rejects[0].why} {rejects[0].detail}"
                if rejects
                else ""
            )
            raise VlpipeError(f"no readable image with a test in its column {self.COLUMN.name!r}{first}")

    def _images(
        self,
        job: Job,
        texts_of: Callable[[Any], Sequence[str]],
        image_size: int,
        rejects: list[Reject],
        ahead: Ahead,
    ) -> Iterator[tuple[Asked, Pixels]]:
        name = self.COLUMN.name
        for data in job.inputs:
            for table in data.batches(["id", name], ["image"]):
                ids, tests = table["id"].to_pylist(), table[name].to_pylist()
                for row, pixels in read_images(table, image_size, rejects, ahead):
                    texts = texts_of(tests[row]) if tests[row] else ()
                    if texts:
                        yield Asked(ids[row], tests[row], texts), pixels
                    else:
                        rejects.append(
                            Reject(ids[row], "filtered", "no_test", f"its column {name!r} is empty")
                        )

    def _scores(
        self, model: Loaded, pairs: Iterable[tuple[K, torch.Tensor, str]]
    ) -> Iterator[tuple[K, float]]:
        if self.score == "match":
            for key, logits in match_logits(model, pairs, self.batch_size, self.max_text_length):
                no, yes = logits.double().tolist()
                yield key, yes - no
        else:
            yield from similarities(model, pairs, self.batch_size, self.max_text_length)


def similarities(
    model: Loaded, pairs: Iterable[tuple[K, torch.Tensor, str]], batch_size: int, max_text_length: int
) -> Iterator[tuple[K, float]]:
    """Maps (key, embedding (E,) of an image, text) to (key, cosine), in order."""
    import torch

    for batch, num_real in fixed_batches(pairs, batch_size):
        ids, mask = model.tokenizer.encode([text for _, _, text in batch], max_text_length)
        images = torch.stack([image for _, image, _ in batch])
        found = (images.float() * model.embed_texts(ids, mask).float()).sum(1).tolist()
        yield from zip([key for key, _, _ in batch[:num_real]], found[:num_real], strict=True)
