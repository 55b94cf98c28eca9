"""The nearest texts of each image and images of each text, in memory for those alone: never all similarities at once.

Right answers come after wrong ones that score the same. In any other order, a model whose embeddings are all equal would be
credited with what the order of the rows happens to give.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float32]
Order = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
BLOCK_VALUES = 1 << 26  # similarities at a time: 256 MB


@dataclass(frozen=True)
class Nearest:
    """The candidates of each query, best first. order (Q, k): their indices; scores (Q, k): their similarities."""

    order: Order
    scores: Scores

    def reranked(self, more: Scores, right: Flags | None = None) -> Order:
        """Returns the candidates sorted by similarity + `more` (Q, k), highest first. Ties: those that are not `right`
        (Q, k) first, then in their order; NaN last."""
        again = _sorted(-(self.scores + more), right)
        return np.take_along_axis(self.order, again, axis=1)


class Relevance:
    """Which texts and images belong together: a text and each image that has it, or one that reads the same."""

    def __init__(
        self, owner: Order, texts: Sequence[str] | None = None, more: Sequence[tuple[int, str]] = ()
    ) -> None:
        """owner (T,): the image of each text. texts: the T texts; None: no two are equal. more: further pairs of an image
        and a text, of which those with other texts have no effect."""
        numbers = {text: n for n, text in enumerate(dict.fromkeys(texts or ()))}
        alike = np.arange(len(owner)) if texts is None else np.array([numbers[text] for text in texts])
        known = [(image, numbers[text]) for image, text in more if text in numbers]
        images, others = np.array(known, np.int64).reshape(-1, 2).T
        self.alike, self._num = alike, int(alike.max(initial=-1)) + 1
        self._pairs = np.unique(np.concatenate([owner, images]) * self._num + np.concatenate([alike, others]))
        self._order = np.argsort(alike, kind="stable")
        self._starts = np.searchsorted(alike[self._order], np.arange(self._num + 1))

    def relevant_texts(self, texts: Order) -> Flags:
        """texts (I, k): indices of texts beside each image. Returns which belong to it, (I, k)."""
        return self._are_pairs(np.arange(len(texts))[:, None], self.alike[texts])

    def relevant_images(self, images: Order) -> Flags:
        """images (T, k): indices of images beside each text. Returns which belong to it, (T, k)."""
        return self._are_pairs(images, self.alike[:, None])

    def _are_pairs(self, images: Order, alike: Order) -> Flags:
        return np.asarray(np.isin(images * self._num + alike, self._pairs))

    def block(self, start: int, stop: int) -> Flags:
        """Returns which of all texts belong to each image from `start` on, (stop - start, T)."""
        right = np.zeros((stop - start, len(self.alike)), bool)
        first, last = np.searchsorted(self._pairs, [start * self._num, stop * self._num])
        for image, text in zip(*np.divmod(self._pairs[first:last], max(1, self._num)), strict=True):
            right[image - start, self._order[self._starts[text] : self._starts[text + 1]]] = True
        return right


def both_ways(
    images: Scores, texts: Scores, k: int, relevance: Relevance, block_values: int = BLOCK_VALUES
) -> tuple[Nearest, Nearest]:
    """Returns the k nearest texts of each image (I, D), and the k nearest images of each text (T, D), by dot product.

    Images with several vectors, (I, Q, D), are as similar to a text as the nearest of these. Fewer than k where there are
    fewer. Ties: texts and images that do not belong together first, then the lower index. Memory: k similarities per query
    and one block.
    """
    num_parts = 1 if images.ndim == 2 else images.shape[1]
    size = max(1, block_values // (num_parts * len(texts)))
    orders, scores = [], []
    of_texts = Nearest(np.empty((len(texts), 0), np.int64), np.empty((len(texts), 0), np.float32))
    for start in range(0, len(images), size):
        sims = images[start : start + size] @ texts.T
        sims = sims if images.ndim == 2 else sims.max(axis=1)
        right = relevance.block(start, start + len(sims))
        found = best(sims, k, right)
        orders.append(found.order)
        scores.append(found.scores)
        new = best(sims.T, k, right.T)
        of_texts = _merged(of_texts, Nearest(new.order + start, new.scores), k, relevance)
    return Nearest(np.concatenate(orders), np.concatenate(scores)), of_texts


def best(scores: Scores, k: int, right: Flags | None = None) -> Nearest:
    """Returns the k highest of each row of (Q, N), highest first. Ties: those that are not `right` (Q, N) first, then the
    lower index; NaN last."""
    order = np.stack([_best(-row, k, None if right is None else right[n]) for n, row in enumerate(scores)])
    return Nearest(order, np.take_along_axis(scores, order, axis=1))


def _best(distances: Scores, k: int, right: Flags | None) -> Order:
    """Returns the indices of the k lowest of (N,), in the order of `best`."""
    near = np.arange(len(distances))
    if k < len(distances) and (limit := np.partition(distances, k - 1)[k - 1]) == limit:
        near = np.flatnonzero(distances <= limit)  # the others need no sorting
    return near[_sorted(distances[near], None if right is None else right[near])[:k]]


def _sorted(distances: Scores, right: Flags | None) -> Order:
    """Returns the order of the last axis, lowest first; ties: those that are not `right` first, then the lower index."""
    if right is None:
        return np.argsort(distances, axis=-1, kind="stable")
    return np.lexsort((right, distances), axis=-1)


def _merged(before: Nearest, new: Nearest, k: int, relevance: Relevance) -> Nearest:
    """Returns the k highest of both for each text. Indices in `before` are lower than all in `new`."""
    scores = np.concatenate([before.scores, new.scores], axis=1)
    order = np.concatenate([before.order, new.order], axis=1)
    keep = _sorted(-scores, relevance.relevant_images(order))[:, :k]
    return Nearest(np.take_along_axis(order, keep, axis=1), np.take_along_axis(scores, keep, axis=1))


class Candidates:
    """The pairs that are candidates in one direction or the other, by image, and room for a logit of each.

    logits_of_images (I, k), logits_of_texts (T, k): beside the candidates of `Nearest`.
    """

    def __init__(self, texts_of_images: Nearest, images_of_texts: Nearest) -> None:
        self._texts, flat = texts_of_images.order, images_of_texts.order.ravel()
        self._k = images_of_texts.order.shape[1]
        self._places = np.argsort(flat, kind="stable")  # in `flat`, by image
        self._starts = np.searchsorted(flat[self._places], np.arange(len(self._texts) + 1))
        self.logits_of_images = np.zeros(texts_of_images.order.shape, np.float32)
        self.logits_of_texts = np.zeros(images_of_texts.order.shape, np.float32)

    def of(self, image: int) -> Iterator[int]:
        """Yields the texts that are paired with an image, in order."""
        yield from np.union1d(self._texts[image], self._asked_by(image) // self._k).tolist()

    def _asked_by(self, image: int) -> Order:
        """Returns places in the flat (T, k) where this image is a candidate."""
        return self._places[self._starts[image] : self._starts[image + 1]]

    def put(self, image: int, logits: dict[int, float]) -> None:
        """Stores the logits of an image's pairs: text -> logit."""
        self.logits_of_images[image] = [logits[text] for text in self._texts[image].tolist()]
        places = self._asked_by(image)
        self.logits_of_texts.ravel()[places] = [logits[text] for text in (places // self._k).tolist()]
