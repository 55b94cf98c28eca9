"""CLIP similarity of each text and its image: the cosine that LAION, DataComp and others threshold.

A threshold is valid for one encoder only (LAION's 0.28 is for OpenAI's ViT-B/32), so the column records its encoder,
and `filter.rules` refuses a threshold for another. Radford et al., 2021, https://arxiv.org/abs/2103.00020.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Out, Reject, need, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.batches import (
    batch_size_problems,
    encode_images,
    fixed_batches,
    made_up,
    read_prepared,
    without,
)
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

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ClipScore(RunsModel, MapStage):
    """Adds `clip_score`: list<float32>, the cosine of the text's and the image's embeddings, -1 to 1, for each text.

    Texts that are already dropped get null and are not computed. Rows with an undecodable image are rejected (fault).
    model: a transformers CLIPModel (folder or hub id). encoder: the model's name in rules; default: the hub id or the
    folder's name.
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

    @contextmanager
    def open(self) -> Iterator[Work]:
        from transformers import AutoTokenizer, CLIPModel

        clip = load_model(CLIPModel, self.model, self.precision)
        tokenizer = pretrained(AutoTokenizer, self.model.path)
        prepare = processed(self.model)

        def work(rows: pa.Table, ahead: Ahead) -> Out:
            rejects: list[Reject] = []
            images = read_prepared(rows, prepare, rejects, ahead)
            vectors = dict(encode_images(images, partial(image_vectors, clip), self.batch_size, ahead))
            flat = FlatTexts(rows["texts"])
            wanted = [i for i in np.flatnonzero(flat.kept()).tolist() if int(flat.row[i]) in vectors]
            texts = flat.field("text").take(pa.array(wanted, pa.int64())).to_pylist()
            scores = np.full(len(flat.row), np.nan, np.float32)
            for i, vector in zip(wanted, text_vectors(clip, tokenizer, texts, self.batch_size), strict=True):
                scores[i] = cosine(vectors[int(flat.row[i])].numpy(), vector)
            column = flat.nested(pa.array(scores, mask=np.isnan(scores)))
            return Out(without(with_columns(rows, clip_score=column), rejects), rejects)

        yield Working(work, self.decode_workers, device().type == "cuda")

    @contextmanager
    def trials(self) -> Iterator[Callable[[int], None]]:
        from transformers import AutoTokenizer, CLIPModel

        clip = load_model(CLIPModel, self.model, self.precision)
        tokenizer = pretrained(AutoTokenizer, self.model.path)

        def compute(size: int) -> None:
            image_vectors(clip, made_up(size, clip.config.vision_config.image_size))
            assert len(list(text_vectors(clip, tokenizer, ["word"] * size, size))) == size

        yield compute


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
