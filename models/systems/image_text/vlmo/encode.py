"""How VLMo encodes an image or a text alone: by the experts of one modality, and in the upper layers by those of both, too.

Bao et al. 2021, https://arxiv.org/abs/2111.02358.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlpipe.models.blocks.patches import cut_patches, resize_positions
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.systems.image_text.vlmo.layers import IMAGE, TEXT, RelativeBias, Words, cut_text_bias


class Encodes(Model):
    """The part of `Vlmo` that looks at one modality. first_vl: the first layer with experts of both."""

    words: Words
    patch: nn.Linear
    class_token: nn.Parameter
    mask_token: nn.Parameter
    positions: nn.Parameter | None
    relative: RelativeBias | None
    modality: nn.Embedding
    blocks: nn.ModuleList
    norm: nn.LayerNorm
    first_vl: int

    def image_embeds(self, out: Outputs) -> Tensor:
        """(B, 1 + N, width): class token and patches before the first layer; extra["masked"] hides some."""
        image = out.stream("image")
        x = self.patch(cut_patches(image.data, self.config.patch_size))
        if "masked" in image.extra:
            x = torch.where(image.extra["masked"][:, :, None], self.mask_token.to(x.dtype), x)
        x = torch.cat([self.class_token.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
        x = x if self.positions is None else x + self.positions.to(x.dtype)
        return x + self.modality.weight[1].to(x.dtype)

    def text_embeds(self, out: Outputs) -> Tensor:
        """(B, L, width): the words before the first layer."""
        x: Tensor = self.words(out.stream("text").data)
        return x + self.modality.weight[0].to(x.dtype)

    def _run(
        self, x: Tensor, parts: Any, keys: Tensor | None, bias: Tensor | None, first: int, last: int
    ) -> Tensor:
        for i in range(first, last):
            x = self.blocks[i](x, parts, keys, None if bias is None else bias[i])
        return x

    def _lower(self, name: str, x: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Returns what the lower layers make of one modality alone, and the biases of all layers."""
        num_text = x.shape[1] if name == TEXT else 0
        bias = None if self.relative is None else self.relative(num_text, has_image=name == IMAGE)
        return self._run(x, [(name, x.shape[1])], keys, bias, 0, self.first_vl), bias

    def _upper(self, expert: str, x: Tensor, bias: Tensor | None, keys: Tensor | None = None) -> Tensor:
        """Returns what the upper layers make of `_lower`'s by one expert."""
        found: Tensor = self.norm(
            self._run(x, [(expert, x.shape[1])], keys, bias, self.first_vl, len(self.blocks))
        )
        return found

    def image_lower(self, out: Outputs) -> tuple[Tensor, Tensor | None]:
        return self._lower(IMAGE, out.image_embeds, None)

    def text_lower(self, out: Outputs) -> tuple[Tensor, Tensor | None]:
        return self._lower(TEXT, out.text_embeds, out.stream("text").mask)

    def image_tokens(self, out: Outputs) -> Tensor:
        """(B, 1 + N, width), by the experts of vision."""
        return self._upper(IMAGE, *out.image_lower)

    def text_tokens(self, out: Outputs) -> Tensor:
        """(B, L, width), by the experts of language."""
        x, bias = out.text_lower
        return self._upper(TEXT, x, bias, out.stream("text").mask)

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Positions of another image size are interpolated, those of longer texts cut off."""
        if self.positions is not None:
            words = state["words.positions.weight"][: self.config.max_text_length]
            places = resize_positions(state["positions"], self.positions.shape[1])
            return {**state, "positions": places, "words.positions.weight": words}
        return {**state, "relative.text": cut_text_bias(state["relative.text"], self.config.max_text_length)}
