"""What several objectives need of one batch, computed once and only when asked for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor


class UnimodalEncoder(Protocol):
    def encode_image(self, pixels: Tensor) -> Tensor: ...
    def image_features(self, tokens: Tensor) -> Tensor: ...
    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor: ...
    def embed_text(self, ids: Tensor, mask: Tensor) -> Tensor: ...


class Features:
    """Lazy student features of `batch` (see `objectives`); `momentum` is filled in by an objective that has
    a teacher.

    Padding that no row of the batch needs is cut off: it changes no value and costs time.
    """

    def __init__(self, model: UnimodalEncoder, batch: Mapping[str, Any]) -> None:
        self._model = model
        self._pixels: Tensor = batch["pixels"]  # (B, 3, S, S)
        longest = max(1, int(batch["attention_mask"].sum(1).max()))
        self.input_ids: Tensor = batch["input_ids"][:, :longest]  # (B, L)
        self.attention_mask: Tensor = batch["attention_mask"][:, :longest]
        self.momentum: tuple[Tensor, Tensor] | None = (
            None  # image and text features of the teacher, (B, E) each
        )

    @cached_property
    def image_tokens(self) -> Tensor:  # (B, N, Dv)
        return self._model.encode_image(self._pixels)

    @cached_property
    def image_feat(self) -> Tensor:  # (B, E), unit norm
        return self._model.image_features(self.image_tokens)

    @cached_property
    def text_tokens(self) -> Tensor:  # (B, L, Dt)
        return self._model.encode_text(self.input_ids, self.attention_mask)

    @cached_property
    def text_feat(self) -> Tensor:  # (B, E), unit norm
        return self._model.embed_text(self.input_ids, self.attention_mask)
