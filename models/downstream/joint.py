"""The base of heads over a model of images and texts: which model, what it sees, and its joint vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vlpipe.models.downstream.based import BasedModel
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.capabilities import Fuses, missing
from vlpipe.models.interface.joint_capabilities import PoolsJointly
from vlpipe.models.interface.outputs import Outputs

NOT_SEEN = ("text", "answer")  # streams of a model that are no image: `answer` is a head's own
SECOND = "second_"


class JointModel(BasedModel):
    """Base of heads over `base`, the spec of a model that has `PoolsJointly` or `Fuses`; see `BasedModel`.

    blind: a control that sees no image: pixels and features are zeros, and an image has one region.
    """

    def __init__(
        self, *, base: Mapping[str, Any], tokens: Mapping[str, int] | None = None, blind: bool = False
    ) -> None:
        super().__init__(base=base, tokens=tokens)
        if missing(self.base, [PoolsJointly]) and missing(self.base, [Fuses]):
            raise ValueError(
                f"base: {type(self.base).__name__} has neither `pooled` nor `fused`, so a head finds no joint vector "
                "of a text and its image"
            )
        self.blind = blind
        self.joint_width = self.base_width

    @property
    def seen(self) -> list[str]:
        """The streams of the base that are its image: pixels, regions or frames."""
        return [name for name in self.base.streams() if name not in NOT_SEEN]

    def streams(self) -> dict[str, dict[str, Any]]:
        """Returns the streams of the base."""
        return {name: spec for name, spec in self.base.streams().items() if name != "answer"}

    def joint(self, streams: Mapping[str, Stream], same: Tensor, texts_per_image: int = 1) -> Tensor:
        """Returns the joint vectors (N, joint_width) of N texts, K = `texts_per_image` for each of N / K images in order.

        An image is encoded once if the base lists its encodings. same: (N / K,) of the batch.
        """
        if self.blind:
            streams = {name: s if name == "text" else unseen(s) for name, s in streams.items()}
        out = Outputs(self.base, Batch(streams, same))
        if texts_per_image > 1:
            texts = torch.arange(len(streams["text"]), device=same.device)
            rows = dict.fromkeys(streams, texts // texts_per_image) | {"text": texts}
            out = out.paired(rows, streams={"text": streams["text"]})
        return pooled(self.base, out)


def pooled(base: Any, out: Outputs) -> Tensor:
    """Returns the joint vectors (B, D) of a model; see `PoolsJointly`."""
    if not missing(base, [PoolsJointly]):
        return out.pooled
    text = out.fused["text"]
    pooler = getattr(base, "pooler", None)
    found: Tensor = text[:, 0] if pooler is None else pooler(text)
    return found


def unseen(stream: Stream) -> Stream:
    """Returns the stream without content: zeros, and one position of what has several per row, (B, L) or (B, L, D)."""
    if stream.data.ndim in (2, 3):  # codes, features of regions or frames, boxes; pixels have more dimensions
        cut = replace(stream, target={}, places={}).map(
            lambda value: value[:, :1] if value.ndim in (2, 3) else value
        )
        mask = torch.ones(cut.data.shape[:2], dtype=torch.bool, device=cut.data.device)
        return replace(cut.map(torch.zeros_like), mask=mask)
    return replace(stream.map(torch.zeros_like), mask=stream.mask)


class AnswerHead(nn.Sequential):
    """Joint vectors (..., width) -> (..., num_outputs): a layer of `hidden` units, GELU, norm, and a matrix.

    The head of LXMERT, https://arxiv.org/abs/1908.07490, UNITER, https://arxiv.org/abs/1909.11740, and ViLT,
    https://arxiv.org/abs/2102.03334.
    """

    def __init__(self, width: int, hidden: int, num_outputs: int) -> None:
        layers = nn.Linear(width, hidden), nn.GELU(), nn.LayerNorm(hidden, eps=1e-12)
        super().__init__(*layers, nn.Linear(hidden, num_outputs))
