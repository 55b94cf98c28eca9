"""Retrieval of images by images: the nearest embeddings of each, judged by a column that says which belong together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.stage import Job
from vlpipe.stages.evaluate.nearest import BLOCK_VALUES
from vlpipe.stages.probing.features import Labelled, ProbesImages, results
from vlpipe.stages.probing.knn import neighbours

RECALL_AT = (1, 5, 10)


@dataclass(frozen=True, kw_only=True)
class ImageRetrieval(ProbesImages):
    """Emits RESULTS: `i2i@k`, k = 1, 5, 10, the share of queries with an image of their label among the k nearest. With R
    the number of images of the query's label: `i2i_map@r`, the mean over queries of the average precision of the R
    nearest, and `i2i_r_precision`, of the share of the label among these (Musgrave et al. 2020,
    https://arxiv.org/abs/2003.08505).

    One input: each image is a query among all others. Several: the images of the last are queries among those of the others.
    The label may be a class, or the number of a picture of which there are several versions. Queries without another image
    of their label are left out; num_rows: those that count. Among equal cosines, images of another label come first.
    """

    NAME: ClassVar[str] = "probing.image_retrieval:ImageRetrieval"
    VERSION: ClassVar[int] = 2  # 2: ties count as wrong

    def run(self, job: Job) -> None:
        from vlpipe.stages.common.model import load

        model = load(self.model, needs=self._needs(), precision=self.precision)
        queries = self.labelled(job, model, job.inputs[-1:])
        alone = len(job.inputs) == 1
        known = queries if alone else self.labelled(job, model, job.inputs[:-1])
        figures, num = judged(queries, known, alone)
        if not num:
            raise VlpipeError(f"{self.NAME}: no query has another image of its label")
        job.emit(results(figures, num))


def judged(
    queries: Labelled, known: Labelled, alone: bool, block_values: int = BLOCK_VALUES
) -> tuple[dict[str, float | None], int]:
    """Returns the figures, and the number of queries that count. alone: both are the same, and no image finds itself.

    Memory: the similarities of a block of queries, as many neighbours of them as the most frequent label has images.
    """
    names, counts = np.unique(known.labels, return_counts=True)
    at = np.minimum(np.searchsorted(names, queries.labels), len(names) - 1)
    wanted = np.where(names[at] == queries.labels, counts[at] - alone, 0)  # R of each query
    deepest = int(min(max(*RECALL_AT, wanted.max()) + alone, len(known)))
    totals = dict.fromkeys([*(f"i2i@{k}" for k in RECALL_AT), "i2i_map@r", "i2i_r_precision"], 0.0)
    labels = (queries.labels, known.labels)
    for start, near in neighbours(queries.features, known.features, deepest, block_values, labels):
        order = near.order
        if alone:
            own = order == np.arange(start, start + len(order))[:, None]
            own[~own.any(1), -1] = True  # equal to many others: the last one makes room
            order = order[~own].reshape(len(order), -1)
        rows = slice(start, start + len(order))
        counted = wanted[rows] > 0
        hits = (known.labels[order] == queries.labels[rows, None])[counted]
        depth = wanted[rows][counted]
        within = np.arange(hits.shape[1]) < depth[:, None]
        precision = hits.cumsum(1) / np.arange(1, hits.shape[1] + 1)
        totals["i2i_map@r"] += float(((precision * hits * within).sum(1) / depth).sum())
        totals["i2i_r_precision"] += float(((hits & within).sum(1) / depth).sum())
        for k in RECALL_AT:
            totals[f"i2i@{k}"] += int(hits[:, :k].any(1).sum())
    num = int((wanted > 0).sum())
    return {name: total / max(num, 1) for name, total in totals.items()}, num
