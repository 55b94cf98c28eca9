"""Evaluates text retrieval (TR, image to text) and image retrieval (IR, text to image) on held-out images.

Retrieval has two stages, as in ALBEF and BLIP (https://arxiv.org/abs/2201.12086): the `k_test` nearest by contrastive
similarity are re-ranked by ITM logit + similarity. Both are reported: `itc_tr@1` before and `tr@1` after re-ranking.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Reject
from vlpipe.pipeline.stage import GatherStage, Job, Stage
from vlpipe.stages.common.batches import batch_size_problems, encode_images, fixed_batches
from vlpipe.stages.common.row import RESULTS
from vlpipe.stages.evaluate.heldout import heldout, need_heldout, nothing_to_evaluate
from vlpipe.stages.filter.itm import match_logits

if TYPE_CHECKING:
    from vlpipe.stages.common.model import Loaded

RECALL_AT = (1, 5, 10)
Scores = npt.NDArray[np.float32]
Order = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Retrieval(GatherStage):
    """Emits RESULTS: recall `tr@k` over images and `ir@k` over captions, k = 1, 5, 10, as fractions from 0 to 1.

    `tr@k`: at least one caption of the image is among its top k texts. `ir@k`: the image is among the top k of its
    caption. Ties are ranked by row, then by caption order. An image may have several captions.

    source: `source` of the captions. k_test: candidates per query that are re-ranked; BLIP uses 256 (COCO) and 128
    (Flickr30K). 0: no re-ranking, as for models without a matching head (CLIP).
    """

    NAME: ClassVar[str] = "evaluate.retrieval:Retrieval"
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    source: str = "human"
    k_test: int = 128
    batch_size: int = 64
    max_text_length: int = 30  # tokens, including [CLS] and [SEP]; as in BLIP

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need_heldout(inp, "evaluate.retrieval")
        return RESULTS

    def preflight(self) -> list[str]:
        problems = batch_size_problems(self.batch_size)
        if self.k_test and self.k_test < max(RECALL_AT):
            problems.append(
                f"k_test must be 0 or at least {max(RECALL_AT)}, the largest k of recall@k, got {self.k_test}"
            )
        return problems

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.capabilities import EmbedsImages, EmbedsTexts, Matches
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(
            self.model, stages, [EmbedsImages, EmbedsTexts, *([Matches] if self.k_test else [])]
        )

    def run(self, job: Job) -> None:
        from vlpipe.models.interface.capabilities import EmbedsImages, EmbedsTexts, Matches
        from vlpipe.stages.common.model import load

        needs = [EmbedsImages, EmbedsTexts, *([Matches] if self.k_test else [])]
        model = load(self.model, self.max_text_length, needs)
        rejects: list[Reject] = []
        captions, image_feats = self._image_side(job, model, rejects)
        if not captions:
            raise nothing_to_evaluate(self.source, rejects)
        job.reject(rejects)
        texts = [text for several in captions for text in several]
        owner = np.repeat(np.arange(len(captions)), [len(several) for several in captions])  # (T,)
        sims = image_feats @ self._text_feats(texts, model).T  # (I, T), cosine
        near_texts, near_images = (nearest(s, max(self.k_test, *RECALL_AT)) for s in (sims, sims.T))
        found = recalls("itc_", near_texts, near_images, owner)
        if self.k_test:
            scores = sims + self._match(job, model, texts, near_texts, near_images)
            found += recalls("", reranked(near_texts, scores), reranked(near_images, scores.T), owner)
        job.emit(pa.Table.from_pylist(found, RESULTS))

    def _image_side(
        self, job: Job, model: Loaded, rejects: list[Reject]
    ) -> tuple[list[tuple[str, ...]], Scores]:
        images = heldout(job, self.source, model.image_size, rejects)
        encoded = encode_images(images, model.embed_images, self.batch_size)
        captions, feats = [], []
        for (_, several), feat in encoded:
            captions.append(several)
            feats.append(feat.float().cpu().numpy())
        return captions, np.array(feats, np.float32)

    def _text_feats(self, texts: list[str], model: Loaded) -> Scores:
        feats = []
        for batch, num_real in fixed_batches(texts, self.batch_size):
            ids, mask = model.tokenizer.encode(batch, self.max_text_length)
            feats.append(model.embed_texts(ids, mask)[:num_real].float().cpu().numpy())
        return np.concatenate(feats)

    def _match(
        self, job: Job, model: Loaded, texts: list[str], near_texts: Order, near_images: Order
    ) -> Scores:
        """Returns ITM logits (I, T) of the pairs that are candidates in either direction, 0 elsewhere.

        Images are read and encoded a second time: storing the tokens of 5,000 images at 384 px would take 9 GB.
        """
        wanted = np.zeros((len(near_texts), len(texts)), np.bool_)
        np.put_along_axis(wanted, near_texts, True, axis=1)
        np.put_along_axis(wanted.T, near_images, True, axis=1)
        images = (pixels for _, pixels in heldout(job, self.source, model.image_size, []))
        pairs = (
            ((image, text), tokens, texts[text])
            for image, tokens in encode_images(enumerate(images), model.encode_images, self.batch_size)
            for text in np.flatnonzero(wanted[image])
        )
        logits = np.zeros(wanted.shape, np.float32)
        for at, pair in match_logits(model, pairs, self.batch_size, self.max_text_length, share_images=True):
            logits[at] = pair[1].item()
        return logits


def nearest(scores: Scores, k: int) -> Order:
    """Returns the indices of the top k of each query, best first: (Q, N) -> (Q, min(k, N)). Ties: lower index first."""
    return np.stack([np.argsort(-row, kind="stable")[:k] for row in scores])


def reranked(near: Order, scores: Scores) -> Order:
    """Returns the candidates `near` (Q, k) of each query, sorted by descending score (Q, N); ties keep their order."""
    order = np.argsort(-np.take_along_axis(scores, near, axis=1), axis=1, kind="stable")
    return np.take_along_axis(near, order, axis=1)


def recalls(prefix: str, texts: Order, images: Order, owner: Order) -> list[dict[str, Any]]:
    """Returns RESULTS rows `tr@k` and `ir@k`, with `prefix` before their names.

    texts (I, k): indices of the top texts per image; images (T, k): of the top images per text; owner (T,): of the image
    that each text belongs to.
    """
    hits = {
        "tr": owner[texts] == np.arange(len(texts))[:, None],  # (I, k)
        "ir": images == owner[:, None],  # (T, k)
    }
    return [
        {"name": f"{prefix}{way}@{k}", "value": float(hit[:, :k].any(axis=1).mean()), "num_rows": len(hit)}
        for way, hit in hits.items()
        for k in RECALL_AT
    ]
