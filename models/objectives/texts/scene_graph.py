"""Prediction of masked words of a scene graph. Yu et al. 2020 (ERNIE-ViL), https://arxiv.org/abs/2006.16934, section 3.2."""

from __future__ import annotations

from typing import Literal, get_args

from vlpipe.models.objectives.masked_lm import MaskedLm

Node = Literal["object", "attribute", "relation"]


class SceneGraphWords(MaskedLm):
    """`scene_object`, `scene_attribute` or `scene_relation`: cross entropy in nats per masked token of such nodes; and its
    `_accuracy`, a diagnostic.

    node: which. Its view needs the corruptor `scene_graphs.mask:MaskSceneGraph`. Raises ValueError for another node.
    """

    def __init__(self, *, node: Node, stream: str = "text", matched_only: bool = False) -> None:
        if node not in get_args(Node):
            raise ValueError(f"SceneGraphWords: node must be {', '.join(get_args(Node))}, got {node!r}")
        super().__init__(stream=stream, matched_only=matched_only)
        self.LOSSES = (f"scene_{node}",)
        self.TARGET = node
