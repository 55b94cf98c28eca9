"""Evaluates text retrieval (TR, image to text) and image retrieval (IR, text to image) on held-out images.

Retrieval has two stages, as in ALBEF and BLIP (https://arxiv.org/abs/2201.12086): the `k_test` nearest by contrastive
similarity are re-ranked by ITM logit + similarity. Both are reported: `itc_tr@1` before and `tr@1` after re-ranking.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, Weights
from vlpipe.pipeline.shard import Reject, need
from vlpipe.pipeline.stage import GatherStage, Job, Stage
from vlpipe.stages.common.batches import batch_size_problems, encode_images, fixed_batches
from vlpipe.stages.common.row import RESULTS
from vlpipe.stages.evaluate.heldout import Key, heldout, need_heldout, nothing_to_evaluate
from vlpipe.stages.evaluate.items import ITEMS_REFERENCES, items, write_items
from vlpipe.stages.evaluate.nearest import Candidates, Order, Relevance, Scores, both_ways
from vlpipe.stages.filter.itm import match_logits
from vlpipe.stages.inference.ahead import Ahead
from vlpipe.stages.inference.stage import RunsModel

if TYPE_CHECKING:
    from vlpipe.stages.common.model import Loaded

RECALL_AT = (1, 5, 10)
Hits = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Retrieval(RunsModel, GatherStage):
    """Emits RESULTS: recall `tr@k` over images and `ir@k` over captions, k = 1, 5, 10, as fractions from 0 to 1.

    `tr@k`: at least one caption of the image is among its top k texts. `ir@k`: the image is among the top k of its
    caption. A text belongs to each image that has it or one that reads the same, since no model can tell them apart;
    published evaluations go by the ids of captions and leave that to chance. All other ties count as wrong. An image may
    have several captions. Of a model that embeds an image several times (BLIP-2), the nearest embedding counts.
    Artifact `items.parquet` (columns: ITEMS): whether each query is a hit (0 or 1), for `evaluate.compare`. The item of an
    image is its row id, that of its caption k (from 0) is `ID#k`.

    source: `source` of the captions. k_test: candidates per query that are re-ranked; BLIP uses 256 (COCO) and 128
    (Flickr30K). 0: no re-ranking, as for models without a matching head (CLIP).
    also_relevant: Parquet with columns `url` and `text`: further captions that are right for the image of this URL or path,
    as ECCV Caption (https://arxiv.org/abs/2204.03359) lists them for COCO.
    """

    NAME: ClassVar[str] = "evaluate.retrieval:Retrieval"
    VERSION: ClassVar[int] = 3  # 2: items.parquet; 3: ties count as wrong, equal texts as one
    ADDED: ClassVar[frozenset[str]] = RunsModel.ADDED | {"also_relevant"}
    ARTIFACT_REFERENCES: ClassVar[Mapping[str, tuple[str, ...]]] = ITEMS_REFERENCES
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    source: str = "human"
    also_relevant: File | None = None
    k_test: int = 128
    batch_size: int = 64
    max_text_length: int = 30  # tokens, including [CLS] and [SEP]; as in BLIP

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need_heldout(inp, "evaluate.retrieval")
        return RESULTS

    def preflight(self) -> list[str]:
        problems = batch_size_problems(self.batch_size) + self.worker_problems()
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
        model = load(self.model, self.max_text_length, needs, self.precision)
        rejects: list[Reject] = []
        rows, image_feats = self._image_side(job, model, rejects)
        if not rows:
            raise nothing_to_evaluate(self.source, rejects)
        job.reject(rejects)
        texts = [text for _, several in rows for text in several]
        text_feats = self._text_feats(texts, model)
        if not (np.isfinite(image_feats).all() and np.isfinite(text_feats).all()):
            raise VlpipeError(
                f"evaluate.retrieval: the model in {self.model.path} gives embeddings that are not finite numbers"
            )
        owner = np.repeat(np.arange(len(rows)), [len(several) for _, several in rows])
        more = (
            ()
            if self.also_relevant is None
            else _also_relevant(self.also_relevant, job, [id_ for id_, _ in rows])
        )
        relevance = Relevance(owner, texts, more)
        of_images, of_texts = both_ways(image_feats, text_feats, max(self.k_test, *RECALL_AT), relevance)
        found = hits("itc_", of_images.order, of_texts.order, relevance)
        if self.k_test:
            pairs = self._match(job, model, texts, Candidates(of_images, of_texts))
            texts_again = of_images.reranked(
                pairs.logits_of_images, relevance.relevant_texts(of_images.order)
            )
            images_again = of_texts.reranked(pairs.logits_of_texts, relevance.relevant_images(of_texts.order))
            found |= hits("", texts_again, images_again, relevance)
        ids = [id_ for id_, _ in rows]
        of_queries = {
            "tr": [(id_, id_) for id_ in ids],
            "ir": [(f"{i}#{k}", i) for i, t in rows for k in range(len(t))],
        }
        write_items(
            Path(job.artifacts), (items(name, of_queries[_way(name)], hit) for name, hit in found.items())
        )
        job.emit(pa.Table.from_pylist(recalls(found), RESULTS))

    def _image_side(self, job: Job, model: Loaded, rejects: list[Reject]) -> tuple[list[Key], Scores]:
        rows, feats = [], []
        with Ahead(self.decode_workers, model.is_on_gpu) as ahead:
            images = heldout(job, self.source, model.image_size, rejects, ahead)
            for key, feat in encode_images(images, model.embed_image_parts, self.batch_size, ahead):
                rows.append(key)
                feats.append(feat.float().cpu().numpy())
        return rows, np.array(feats, np.float32)

    def _text_feats(self, texts: list[str], model: Loaded) -> Scores:
        feats = []
        for batch, num_real in fixed_batches(texts, self.batch_size):
            ids, mask = model.tokenizer.encode(batch, self.max_text_length)
            feats.append(model.embed_texts(ids, mask)[:num_real].float().cpu().numpy())
        return np.concatenate(feats)

    def _match(self, job: Job, model: Loaded, texts: list[str], pairs: Candidates) -> Candidates:
        """Stores the ITM logit of each pair in `pairs` and returns it.

        Images are read and encoded a second time: storing the tokens of 5,000 images at 384 px would take 9 GB.
        """
        with Ahead(self.decode_workers, model.is_on_gpu) as ahead:
            images = (pixels for _, pixels in heldout(job, self.source, model.image_size, [], ahead))
            encoded = encode_images(enumerate(images), model.encode_images, self.batch_size, ahead)
            wanted = (
                ((image, text), tokens, texts[text]) for image, tokens in encoded for text in pairs.of(image)
            )
            found = match_logits(model, wanted, self.batch_size, self.max_text_length, share_images=True)
            for image, group in groupby(found, key=lambda one: one[0][0]):
                pairs.put(image, {text: pair[1].item() for (_, text), pair in group})
        return pairs


def _also_relevant(file: File, job: Job, ids: Sequence[str]) -> list[tuple[int, str]]:
    """Returns (place of the image in `ids`, text) of the pairs in `file`. Raises VlpipeError if none is of these images."""
    try:
        table = pq.read_table(file.path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise VlpipeError(f"also_relevant: {file.path} cannot be read as Parquet ({error})") from error
    need(table.schema, f"also_relevant ({file.path})", url=pa.string(), text=pa.string())
    place = {id_: n for n, id_ in enumerate(ids)}
    of_url: dict[str, list[int]] = {}
    for data in job.inputs:
        for batch in data.batches(["id", "url"]):
            for id_, url in zip(batch["id"].to_pylist(), batch["url"].to_pylist(), strict=True):
                if id_ in place:
                    of_url.setdefault(url, []).append(place[id_])
    pairs = zip(table["url"].to_pylist(), table["text"].to_pylist(), strict=True)
    found = [(image, text) for url, text in pairs for image in of_url.get(url, ())]
    if not found:
        raise VlpipeError(f"also_relevant: {file.path} has no pair of an image that is evaluated")
    return found


def hits(prefix: str, texts: Order, images: Order, relevance: Relevance) -> dict[str, Hits]:
    """Returns `tr@k` -> (I,) and `ir@k` -> (T,), with `prefix` before their names: True for each query that is a hit.

    texts (I, k): indices of the top texts per image; images (T, k): of the top images per text.
    """
    found = {"tr": relevance.relevant_texts(texts), "ir": relevance.relevant_images(images)}
    return {
        f"{prefix}{way}@{k}": np.asarray(hit[:, :k].any(axis=1))
        for way, hit in found.items()
        for k in RECALL_AT
    }


def recalls(found: Mapping[str, Hits]) -> list[dict[str, Any]]:
    """Returns the RESULTS rows of the `hits`: the fraction of queries that are hits."""
    return [{"name": name, "value": float(hit.mean()), "num_rows": len(hit)} for name, hit in found.items()]


def _way(name: str) -> str:
    """Returns `tr` or `ir`, the direction that a metric is of."""
    return name.removeprefix("itc_").partition("@")[0]
