"""iGPT: a transformer that predicts the colours of an image's pixels, the next one or hidden ones. Chen et al. 2020,
https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.cache import Cache
from vlpipe.models.blocks.decoder import DecoderLayer
from vlpipe.models.blocks.transformer import INIT_STD, causal_mask
from vlpipe.models.build import build
from vlpipe.models.codebooks.base import Codebook
from vlpipe.models.interface.capabilities import EmbedsImages, FillsCodes
from vlpipe.models.interface.code_capabilities import DrawsCodes, PredictsNextCodes
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs

BELOW = "vlpipe.models.codebooks"
POSITION_STD = 0.01  # the released code's


class IgptLayer(DecoderLayer):
    """As `DecoderLayer`, with norms that neither subtract a mean nor add a bias. bias: of linear layers; released: none."""

    def __init__(self, width: int, heads: int, norm_eps: float, activation: str, bias: bool) -> None:
        super().__init__(width, heads, cross=False, activation=activation)
        self.norm1: Any = nn.RMSNorm(width, eps=norm_eps)
        self.norm2: Any = nn.RMSNorm(width, eps=norm_eps)
        if not bias:
            for linear in (self.qkv, self.out, self.up, self.down):
                linear.register_parameter("bias", None)


class Igpt(Model):
    """Defaults are those of iGPT-S. A code is a colour of a palette (`image_codes.palette`); places are pixels, row by row.

    causal: predicts the next code (`images.next_codes`); False: sees all places, and predicts those that `mask_places`
    hides, whose embedding is zero (`images.masked_codes`). codebook: the palette, {use: "patches:PatchCentroids", num_codes:
    512, patch_size: 1}, whose weights are loaded by `init_parts`; the stream `image` may then have the maker
    `image:Image`. None: the codes are a column of the rows. bias: of linear layers, as transformers has it. feature_layer:
    whose normalised input, averaged over places, is `image_feat`; None: the middle one.
    """

    STREAMS = {"image": "code_grid:CodeGrid"}  # noqa: RUF012
    FORMATS = ("imagegpt",)
    CHAIN = ("layers",)

    def __init__(
        self,
        *,
        num_codes: int = 512,
        image_size: int = 32,
        width: int = 512,
        layers: int = 24,
        heads: int = 8,
        causal: bool = True,
        bias: bool = False,
        norm_eps: float = 1e-5,
        activation: str = "quick_gelu",
        feature_layer: int | None = None,
        codebook: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_places = width, image_size**2
        self.words = nn.Embedding(num_codes + 1, width)  # the last one is the start of an image
        self.positions = nn.Embedding(self.num_places, width)
        self.layers = nn.ModuleList(
            IgptLayer(width, heads, norm_eps, activation, bias) for _ in range(layers)
        )
        self.norm = nn.RMSNorm(width, eps=norm_eps)
        self.code_head = nn.Linear(width, num_codes, bias=False)
        self._init(width, layers)
        self.codebook: Codebook | None = None if codebook is None else build(codebook, BELOW)
        if self.codebook is not None and (self.codebook.num_codes, self.codebook.patch_size) != (
            num_codes,
            1,
        ):
            raise ValueError(
                f"model: wanted a codebook of {num_codes} codes of single pixels, got {self.codebook.num_codes} codes of "
                f"{self.codebook.patch_size} x {self.codebook.patch_size}"
            )

    def _init(self, width: int, layers: int) -> None:
        """As the released code: the matrix of logits starts at zero."""
        for part in self.modules():
            if isinstance(part, nn.Linear | nn.Embedding):
                nn.init.normal_(part.weight, std=INIT_STD)
            if isinstance(part, nn.Linear) and part.bias is not None:
                nn.init.zeros_(part.bias)
        for layer in self.layers:
            assert isinstance(layer, IgptLayer)
            nn.init.normal_(layer.qkv.weight, std=width**-0.5)
            nn.init.normal_(layer.out.weight, std=(width * layers) ** -0.5)
        nn.init.normal_(self.positions.weight, std=POSITION_STD)
        nn.init.zeros_(self.code_head.weight)

    def streams(self) -> dict[str, dict[str, Any]]:
        found = super().streams()
        if self.codebook is not None:
            found["image"]["use"] = "image:Image"
        else:
            found["image"] |= {"num_codes": self.config.num_codes, "num_places": self.num_places}
        return found

    def lacks(self, capability: type) -> bool:
        if capability is EmbedsImages:
            return self.codebook is None
        if capability is FillsCodes:
            return bool(self.config.causal)
        return capability in (PredictsNextCodes, DrawsCodes) and not self.config.causal

    def image_codes(self, out: Outputs) -> Tensor:
        """(B, N) int64: the stream itself, or the palette's of its pictures."""
        data = out.stream("image").data
        if not data.is_floating_point():
            return data
        if self.codebook is None:
            raise ValueError("Igpt: to read pictures it needs a palette; set `codebook`")
        return self.codebook(data)

    def _embedded(self, out: Outputs) -> Tensor:
        codes = out.image_codes
        if self.config.causal:
            codes = F.pad(codes[:, :-1], (1, 0), value=self.config.num_codes)
        x = self.words(codes)
        hidden = out.stream("image").extra.get("masked")
        return (x if hidden is None else x * ~hidden[:, :, None]) + self.positions.weight

    def _mask(self, device: torch.device) -> Tensor:
        mask = causal_mask(self.num_places, device)
        return mask if self.config.causal else torch.ones_like(mask)

    def place_hidden(self, out: Outputs) -> Tensor:
        """(B, N, width)."""
        x = self._embedded(out)
        mask = self._mask(x.device)
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)

    def next_code_hidden(self, out: Outputs) -> Tensor:
        return out.place_hidden

    def code_hidden(self, out: Outputs) -> Tensor:
        return out.place_hidden

    def predict_codes(self, hidden: Tensor) -> Tensor:
        return self.code_head(hidden)

    def image_feat(self, out: Outputs) -> Tensor:
        """(B, width), unit norm."""
        at = self.config.feature_layer
        at = len(self.layers) // 2 if at is None else at
        x = self._embedded(out)
        mask = self._mask(x.device)
        for layer in self.layers[:at]:
            x = layer(x, mask)
        norm = self.layers[at].norm1 if at < len(self.layers) else self.norm
        return F.normalize(norm(x).mean(1).float(), dim=-1)  # type: ignore[operator]

    def start_codes(self, out: Outputs) -> tuple[Cache, Tensor]:
        cache = Cache(self.num_places)
        first = out.stream("image").data.new_full((len(out), 1), self.config.num_codes, dtype=torch.long)
        return cache, self.step_codes(first, cache)[:, -1]

    def step_codes(self, codes: Tensor, cache: Any) -> Tensor:
        x = self.words(codes) + cache.positions(self.positions.weight, codes.shape[1])
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, IgptLayer)
            x = layer.step(x, cache, i)
        cache.advance(codes.shape[1])
        return self.norm(x)
