"""Masked words of scene graphs. Yu et al. 2020 (ERNIE-ViL), https://arxiv.org/abs/2006.16934, section 3.2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.corruptors.base import Rng
from vlpipe.stages.loading.corruptors.mask_text import MaskText
from vlpipe.stages.loading.makers.base import IGNORE, TARGET, Item, Maker, Sample
from vlpipe.stages.loading.makers.language.scene_text import KIND, NEEDS, NODE, NODES

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class MaskSceneGraph(MaskText):
    """Masks nodes of scene graphs, and words elsewhere as `MaskText`.

    Each node is chosen with probability `nodes`. The objects of a chosen attribute or relation stay, so that it is predicted
    with them in sight. Records target["object"], ["attribute"] and ["relation"] (B, L), the originals of masked tokens of
    such nodes, and ["ids"], of words elsewhere, each with `rate`. kinds: of the nodes that are masked.
    at_random: the same number of tokens per text, but drawn from all of its words, recorded in "ids" alone: the control.
    joined: nodes are recorded in "ids", too, and no words elsewhere are masked: for evaluation, or one loss for all.
    The stream's maker is `language.scene_text:SceneText`.
    """

    nodes: float = 0.3
    kinds: tuple[str, ...] = NODES
    at_random: bool = False
    joined: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.nodes <= 1:
            raise ValueError(f"mask_scene_graph: nodes must be above 0 and at most 1, got {self.nodes}")
        if not self.kinds or set(self.kinds) - set(NODES):
            raise ValueError(f"mask_scene_graph: kinds must be of {', '.join(NODES)}, got {self.kinds}")

    def __call__(self, samples: list[Sample], rng: Rng, makers: Mapping[str, Maker]) -> list[Sample]:
        tokenizer = makers[self.stream].tokenizer  # type: ignore[attr-defined]
        for k, sample in enumerate(samples):
            item = sample[self.stream]
            if NODE not in item:
                raise VlpipeError(
                    f"mask_scene_graph: the stream {self.stream!r} has no scene graphs; set streams.{self.stream}.use: "
                    '"language.scene_text:SceneText"'
                )
            sample[self.stream] = self._corrupted(item, rng(k), tokenizer)
        return samples

    def _corrupted(self, item: Item, rng: np.random.Generator, tokenizer: object) -> Item:
        words, ids = item["words"], item["data"]
        of_node = np.where(words >= 0, item[NODE], -1)
        chosen = chosen_nodes(item[KIND], item[NEEDS], self.nodes, self.kinds, rng)
        at_node = np.isin(of_node, chosen)
        rest = np.zeros(len(words), np.bool_)
        if not self.joined:
            rest = self._choose(np.where(at_node, -1, words), rng)
        if self.at_random:
            free = np.flatnonzero((words >= 0) & ~rest)
            at = rng.permutation(free)[: at_node.sum()]
            rest[at], at_node = True, np.zeros(len(words), np.bool_)
        masked = self._replaced(ids, at_node | rest, rng, tokenizer)
        found = {**item, "data": masked}
        found[f"{TARGET}ids"] = np.where(rest | (at_node if self.joined else False), ids, IGNORE)
        if not self.at_random:
            kind = np.append(item[KIND], -1)[of_node]  # -1, the last, for no node
            for number, name in enumerate(NODES):
                found[f"{TARGET}{name}"] = np.where(at_node & (kind == number), ids, IGNORE)
        return found


def chosen_nodes(
    kind: Ints, needs: Ints, rate: float, kinds: tuple[str, ...], rng: np.random.Generator
) -> Ints:
    """Returns the numbers of the nodes to mask. kind: (N,), places in NODES. needs: (N, 2), objects or -1."""
    picked = (rng.random(len(kind)) < rate) & np.isin(kind, [NODES.index(name) for name in kinds])
    picked[np.setdiff1d(needs[picked], [-1])] = False
    return np.flatnonzero(picked)
