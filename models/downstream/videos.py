"""Captions of videos, written by a model that reads videos and texts together. Luo et al. 2020 (UniVL), https://arxiv.org/abs/2002.06353."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlpipe.models.downstream.based import BasedModel
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.capabilities import PredictsNext, missing
from vlpipe.models.interface.outputs import Outputs


class VideoWriter(BasedModel):
    """Writes the text of a video, token by token, without a transcript: the base reads the text's first token and the video,
    and its decoder writes the stream `written`, as UniVL's. The streams are the base's; `text` is what is written.
    """

    def __init__(self, *, base: Mapping[str, Any], tokens: Mapping[str, int] | None = None) -> None:
        super().__init__(base=base, tokens=tokens)
        if missing(self.base, [PredictsNext]) or "video" not in self.base.STREAMS:
            raise ValueError(f"base: {type(self.base).__name__} writes no texts about videos")

    def streams(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = self.base.streams()
        return found

    def decoder_hidden(self, out: Outputs) -> Tensor:
        """(B, L, width), of which each state predicts the next token."""
        text = out.stream("text")
        first = text.data[:, :1]
        given = Stream(first, torch.ones_like(first, dtype=torch.bool))
        streams = {"video": out.stream("video"), "text": given, "written": text}
        found: Tensor = Outputs(self.base, Batch(streams, out.batch.same)).decoder_hidden
        return found

    def predict(self, hidden: Tensor) -> Tensor:
        found: Tensor = self.base.predict(hidden)
        return found
