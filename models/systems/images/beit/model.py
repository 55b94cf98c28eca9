"""BEiT: a ViT that predicts the discrete codes of hidden patches. Bao et al. 2021, https://arxiv.org/abs/2106.08254."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.patches import cut_patches
from vlpipe.models.blocks.transformer import INIT_STD
from vlpipe.models.build import build
from vlpipe.models.codebooks.base import Codebook
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.systems.images.beit.encoder import BeitEncoder, RelativePositions, init_within

BELOW = "vlpipe.models.codebooks"


class Beit(Model):
    """Defaults are those of the paper's base model. The view of its objective hides patches (`mask_blocks`).

    position: "learned", one vector per place, or "relative", a bias of attention that all layers share (the released code).
    layer_scale: of the branches of each layer at the start, 0.1 in the released code; None: none. codebook: the spec of a
    frozen codebook such as {use: "dalle:DalleEncoder"}, whose weights are loaded by `init_parts`; the stream `image`
    then needs the maker `two_sizes:TwoSizes`. None: the codes are a column of the rows. init_std: of the weights, which are
    cut off there.
    """

    STREAMS = {"image": "image_codes:ImageWithCodes"}  # noqa: RUF012
    FORMATS = ("beit",)
    CHAIN = ("encoder.blocks",)

    def __init__(
        self,
        *,
        num_codes: int = 8192,
        image_size: int = 224,
        patch_size: int = 16,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        position: Literal["learned", "relative"] = "learned",
        layer_scale: float | None = None,
        drop_path: float = 0.1,
        norm_eps: float = 1e-6,
        init_std: float = INIT_STD,
        codebook: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if image_size % patch_size or position not in ("learned", "relative"):
            raise ValueError(
                "model: image_size must be a multiple of patch_size, and position is learned or relative, got "
                f"{image_size}, {patch_size}, {position!r}"
            )
        self.grid, self.embed_dim = image_size // patch_size, width
        self.patch = nn.Linear(3 * patch_size**2, width)
        self.class_token, self.mask_token = (nn.Parameter(torch.zeros(1, 1, width)) for _ in range(2))
        is_learned = position == "learned"
        self.positions = nn.Parameter(torch.zeros(1, 1 + self.grid**2, width)) if is_learned else None
        self.relative = None if is_learned else RelativePositions(self.grid, heads)
        settings: dict[str, Any] = {"drop_path": drop_path, "layer_scale": layer_scale, "init_std": init_std}
        self.encoder = BeitEncoder(width, layers, heads, norm_eps=norm_eps, **settings)
        self.code_head = nn.Linear(width, num_codes)
        init_within(self.patch, init_std)
        init_within(self.code_head, init_std)
        for token in (self.class_token, self.mask_token, self.positions):
            if token is not None:
                nn.init.trunc_normal_(token, std=init_std, a=-init_std, b=init_std)
        self.codebook: Codebook | None = None if codebook is None else build(codebook, BELOW)
        if self.codebook is not None and self.codebook.num_codes != num_codes:
            raise ValueError(
                f"model: the codebook has {self.codebook.num_codes} codes, num_codes is {num_codes}"
            )

    def streams(self) -> dict[str, dict[str, Any]]:
        found = super().streams()
        if self.codebook is not None:
            found["image"]["second_size"] = self.codebook.patch_size * self.grid
        else:
            found["image"] |= {"num_codes": self.config.num_codes, "num_places": self.grid**2}
        return found

    def image_tokens(self, out: Outputs) -> Tensor:
        """(B, 1 + N, width): the class token and the patches, of which those that extra["masked"] hides are mask tokens."""
        image = out.stream("image")
        x = self.patch(cut_patches(image.data, self.config.patch_size))
        if "masked" in image.extra:
            x = torch.where(image.extra["masked"][:, :, None], self.mask_token.to(x.dtype), x)
        x = torch.cat([self.class_token.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
        x = x if self.positions is None else x + self.positions.to(x.dtype)
        return self.encoder(x, None if self.relative is None else self.relative())

    def image_feat(self, out: Outputs) -> Tensor:
        """(B, width), unit norm: the mean of the patches."""
        return F.normalize(out.image_tokens[:, 1:].mean(1).float(), dim=-1)

    def code_hidden(self, out: Outputs) -> Tensor:
        """(B, N, width): the patches."""
        return out.image_tokens[:, 1:]

    def predict_codes(self, hidden: Tensor) -> Tensor:
        return self.code_head(hidden)

    def image_codes(self, out: Outputs) -> Tensor:
        """(B, N) int64: the codes of the whole image; of the column, or the codebook's."""
        extra = out.stream("image").extra
        return extra["codes"] if self.codebook is None else self.codebook(extra["second"])
