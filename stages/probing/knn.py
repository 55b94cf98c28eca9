"""k-nearest-neighbour classification of frozen features: a weighted vote.

Wu et al. 2018 (instance discrimination), https://arxiv.org/abs/1805.01978, section 3.4; Caron et al. 2021 (DINO),
https://arxiv.org/abs/2104.14294.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.stage import Job
from vlpipe.stages.evaluate.nearest import BLOCK_VALUES, Nearest, best
from vlpipe.stages.probing.features import Features, Labels, ProbesImages, results


@dataclass(frozen=True, kw_only=True)
class NearestNeighbours(ProbesImages):
    """Emits RESULTS: for each k, `knn@k`, the share of the images of the last input whose class gets the highest vote of
    their k nearest images among the other inputs; `knn_prior`, the share of the most frequent class of these.

    A neighbour votes for its class with exp(cosine / temperature). Equal votes: the lower class; equal cosines: the earlier
    image. Raises VlpipeError if there are fewer than k neighbours.
    """

    NAME: ClassVar[str] = "probing.knn:NearestNeighbours"

    k: list[Annotated[int, Field(ge=1)]] = field(default_factory=lambda: [10, 20, 100, 200])
    temperature: Annotated[float, Field(gt=0)] = 0.07

    def preflight(self) -> list[str]:
        return [*super().preflight(), *([] if self.k else ["k: wanted at least one number of neighbours"])]

    def run(self, job: Job) -> None:
        from vlpipe.stages.common.model import load

        if len(job.inputs) < 2:
            raise VlpipeError(f"{self.NAME}: wanted inputs to search in, then one to test; got 1")
        model = load(self.model, needs=self._needs(), precision=self.precision)
        known, tested = (self.labelled(job, model, side) for side in (job.inputs[:-1], job.inputs[-1:]))
        if max(self.k) > len(known):
            raise VlpipeError(f"k: {max(self.k)} neighbours are wanted, but there are {len(known)} images")
        num = 1 + int(max(known.labels.max(), tested.labels.max()))
        right = dict.fromkeys(self.k, 0)
        for start, near in neighbours(tested.features, known.features, max(self.k)):
            truth = tested.labels[start : start + len(near.order)]
            for k in self.k:
                guess = voted(near, known.labels, k, num, self.temperature)
                right[k] += int((guess == truth).sum())
        prior = float((tested.labels == np.bincount(known.labels).argmax()).mean())
        figures: dict[str, float | None] = {f"knn@{k}": n / len(tested) for k, n in right.items()}
        job.emit(results({**figures, "knn_prior": prior}, len(tested)))


def neighbours(
    queries: Features,
    known: Features,
    k: int,
    block_values: int = BLOCK_VALUES,
    labels: tuple[Labels, Labels] | None = None,
) -> Iterator[tuple[int, Nearest]]:
    """Yields (number of the first, the k nearest of `known` (N, D) by cosine) of a block of queries (Q, D) at a time.

    labels: of the queries and of `known`; among equal cosines, those of the query's own label then come last, else the
    earlier first.
    """
    unit = _unit(known)
    size = max(1, block_values // len(known))
    for start in range(0, len(queries), size):
        part = slice(start, start + size)
        own = None if labels is None else labels[0][part, None] == labels[1][None]
        yield start, best(_unit(queries[part]) @ unit.T, k, own)


def _unit(features: Features) -> Features:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.float32(1e-12))


def voted(near: Nearest, labels: Labels, k: int, num_classes: int, temperature: float) -> Labels:
    """Returns the classes (Q,) that the first k neighbours vote for."""
    rows = np.arange(len(near.order))
    votes = np.zeros((len(rows), num_classes))
    for place in range(k):
        weight = np.exp((near.scores[:, place].astype(np.float64) - 1) / temperature)
        votes[rows, labels[near.order[:, place]]] += weight
    return votes.argmax(1)
