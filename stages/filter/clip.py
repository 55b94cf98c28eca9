"""CLIP similarity of each text and its image: the cosine that LAION, DataComp and others threshold.

A threshold is valid for one encoder only (LAION's 0.28 is for OpenAI's ViT-B/32), so the column records its encoder,
and `filter.rules` refuses a threshold for another. Radford et al., 2021, https://arxiv.org/abs/2103.00020.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Out, Reject, need, with_field
from vlpipe.pipeline.stage import MapStage, Stage, Work
from vlpipe.stages.common.batches import (
    Pixels,
    batch_size_problems,
    encode_images,
    fixed_batches,
    made_up,
    read_prepared,
    without,
)
from vlpipe.stages.common.pixels import to_pixels
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.rule import scored
from vlpipe.stages.common.scores import (
    device,
    load_model,
    name_of,
    pretrained,
    processed,
    with_columns,
)
from vlpipe.stages.common.texts import FlatTexts
from vlpipe.stages.inference.ahead import Ahead, Working
from vlpipe.stages.inference.stage import RunsModel

if TYPE_CHECKING:
    import torch
    from PIL import Image

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Encoders:
    """The two encoders of a model.

    prepare: RGB image -> pixels (3, S, S). images: (B, 3, S, S) -> vectors (B, E) in main memory. texts: texts, batch size
    -> the vector (E,) of each. Vectors have any norm. side: S in pixels.
    """

    prepare: Callable[[Image.Image], Pixels]
    images: Callable[[torch.Tensor], torch.Tensor]
    texts: Callable[[Iterable[str], int], Iterator[Vectors]]
    side: int


@dataclass(frozen=True, kw_only=True)
class ClipScore(RunsModel, MapStage):
    """Adds `clip_score`: list<float32>, the cosine of the text's and the image's embeddings, -1 to 1, for each text.

    Texts that are already dropped get null and are not computed. Rows with an undecodable image are rejected (fault).
    model: a transformers CLIPModel (folder or hub id), or a model of this package that embeds images and texts. encoder:
    the model's name in rules; default: the hub id, the folder's name or the step.
    """

    NAME: ClassVar[str] = "filter.clip:ClipScore"
    READS_HEAVY: ClassVar[tuple[str, ...]] = ("image",)
    LOADS_WEIGHTS: ClassVar[bool] = True
    TORCH: ClassVar[bool] = True
    NOT_IN_KEY: ClassVar[frozenset[str]] = RunsModel.NOT_IN_KEY | {"encoder"}

    model: Weights
    encoder: str = ""
    batch_size: int = 64

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "filter.clip", id=pa.string(), texts=TEXTS, image=pa.binary())
        return with_field(
            inp, scored("clip_score", pa.list_(pa.float32()), name_of(self.model, self.encoder))
        )

    def preflight(self) -> list[str]:
        return batch_size_problems(self.batch_size) + self.worker_problems()

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.capabilities import EmbedsImages, EmbedsTexts
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [EmbedsImages, EmbedsTexts])

    @contextmanager
    def open(self) -> Iterator[Work]:
        model = self._encoders()

        def work(rows: pa.Table, ahead: Ahead) -> Out:
            rejects: list[Reject] = []
            images = read_prepared(rows, model.prepare, rejects, ahead)
            vectors = dict(encode_images(images, model.images, self.batch_size, ahead))
            flat = FlatTexts(rows["texts"])
            wanted = [i for i in np.flatnonzero(flat.kept()).tolist() if int(flat.row[i]) in vectors]
            texts = flat.field("text").take(pa.array(wanted, pa.int64())).to_pylist()
            scores = np.full(len(flat.row), np.nan, np.float32)
            for i, vector in zip(wanted, model.texts(texts, self.batch_size), strict=True):
                scores[i] = cosine(vectors[int(flat.row[i])].numpy(), vector)
            column = flat.nested(pa.array(scores, mask=np.isnan(scores)))
            return Out(without(with_columns(rows, clip_score=column), rejects), rejects)

        yield Working(work, self.decode_workers, device().type == "cuda")

    @contextmanager
    def trials(self) -> Iterator[Callable[[int], None]]:
        model = self._encoders()

        def compute(size: int) -> None:
            model.images(made_up(size, model.side))
            assert len(list(model.texts(["word"] * size, size))) == size

        yield compute

    def _encoders(self) -> Encoders:
        from vlpipe.models.folder import is_ours

        return self._own() if is_ours(self.model.path) else self._of_transformers()

    def _of_transformers(self) -> Encoders:
        from transformers import AutoTokenizer, CLIPModel

        clip = load_model(CLIPModel, self.model, self.precision)
        tokenizer = pretrained(AutoTokenizer, self.model.path)
        return Encoders(
            prepare=processed(self.model),
            images=partial(image_vectors, clip),
            texts=partial(text_vectors, clip, tokenizer),
            side=clip.config.vision_config.image_size,
        )

    def _own(self) -> Encoders:
        from vlpipe.models.interface.capabilities import EmbedsImages, EmbedsTexts
        from vlpipe.stages.common.model import load

        model = load(self.model, needs=[EmbedsImages, EmbedsTexts], precision=self.precision)
        length = int(model.model.streams()["text"].get("max_positions", 30))  # as in training

        def texts(some: Iterable[str], batch_size: int) -> Iterator[Vectors]:
            for batch, num_real in fixed_batches(some, batch_size):
                vectors = model.embed_texts(*model.tokenizer.encode(batch, length))
                yield from vectors[:num_real].float().cpu().numpy()

        return Encoders(
            prepare=partial(to_pixels, size=model.image_size),
            images=lambda pixels: model.embed_images(pixels).float().cpu(),
            texts=texts,
            side=model.image_size,
        )


def image_vectors(clip: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Projected image embeddings, not normalised: (B, 3, S, S) -> (B, E)."""
    import torch

    with torch.inference_mode():
        pooled = clip.vision_model(
            pixel_values=pixels.to(device(), non_blocking=True).to(clip.dtype)
        ).pooler_output
        return clip.visual_projection(pooled).float().cpu()


def text_vectors(clip: Any, tokenizer: Any, texts: Iterable[str], batch_size: int) -> Iterator[Vectors]:
    """Yields the projected embedding (E,) of each text, not normalised.

    Batches have the fixed shape (batch_size, max_position_embeddings); longer texts are truncated.
    """
    import torch

    length = clip.config.text_config.max_position_embeddings
    for batch, num_real in fixed_batches(texts, batch_size):
        tokens = tokenizer(
            batch, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        with torch.inference_mode():
            pooled = clip.text_model(**tokens.to(device())).pooler_output
            vectors = clip.text_projection(pooled).float().cpu()
        yield from vectors[:num_real].numpy()


def cosine(a: Vectors, b: Vectors) -> float:
    """Cosine in float64, so that the result does not depend on a row's position in its batch."""
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    return float(a64 @ b64 / (np.linalg.norm(a64) * np.linalg.norm(b64)))
