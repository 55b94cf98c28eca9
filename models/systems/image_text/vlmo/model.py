"""VLMo: one transformer whose self-attention images and texts share, with experts of vision, language, and both.

Bao et al. 2021, https://arxiv.org/abs/2111.02358.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.text import Pooler, WordHead
from vlpipe.models.blocks.transformer import INIT_STD, init_vit
from vlpipe.models.build import build
from vlpipe.models.interface import capabilities as can
from vlpipe.models.interface.image_capabilities import HasImageCodes
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.systems.image_text.vlmo.encode import Encodes
from vlpipe.models.systems.image_text.vlmo.layers import BOTH, IMAGE, TEXT, MomeLayer, RelativeBias, Words

CODES: list[type] = [can.FillsCodes, HasImageCodes]
WORDS: list[type] = [can.FillsWords]
PAIRS: list[type] = [can.EmbedsImages, can.EmbedsTexts, can.Matches, can.Fuses]
HAS: dict[str, list[type]] = {"images": CODES, "texts": WORDS, "pairs": [*WORDS, *PAIRS]}
MIN_TEMP = 0.01


class Vlmo(Encodes):
    """Defaults are those of VLMo-Base.

    stage: what it is trained on; each stage has all parameters and starts from the one before (`init`). "images": codes of
    hidden patches, as BEiT; "texts": masked words, by the experts of language; "pairs": contrast, matching, masked words.
    attention: "shared", or "separate", one for each expert (the paper's ablation). vl_layers: at the top, which have an
    expert of both modalities; below them, words and patches of a pair have their own. position: "learned", or "relative",
    biases of attention (the released code). layer_scale: of branches at the start (released: 0.1); None: none. num_codes,
    codebook: of stage "images", as `Beit`'s; without codebook, the codes are a column of the rows. dropout: of words.
    temp divides the similarities of the experts of one modality, `vl_temp` those of both; they stay above 0.01.
    """

    STREAMS = {"image": "image:Image", "text": "text:Text"}  # noqa: RUF012
    ENCODINGS = {"image": ("image_embeds",), "text": ("text_embeds",)}  # noqa: RUF012

    def __init__(
        self,
        *,
        vocab_size: int,
        stage: Literal["images", "texts", "pairs"] = "pairs",
        image_size: int = 224,
        patch_size: int = 16,
        width: int = 768,
        layers: int = 12,
        vl_layers: int = 2,
        heads: int = 12,
        max_text_length: int = 40,
        attention: Literal["shared", "separate"] = "shared",
        position: Literal["learned", "relative"] = "learned",
        layer_scale: float | None = None,
        drop_path: float = 0.1,
        dropout: float = 0.1,
        num_codes: int = 8192,
        codebook: Mapping[str, Any] | None = None,
        norm_eps: float = 1e-6,
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        self._check()
        self.grid, self.embed_dim = image_size // patch_size, width
        learned = position == "learned"
        self.words = Words(vocab_size, max_text_length, width, has_positions=learned, dropout=dropout)
        self.patch = nn.Linear(3 * patch_size**2, width)
        self.class_token, self.mask_token = (nn.Parameter(torch.zeros(1, 1, width)) for _ in range(2))
        self.positions = nn.Parameter(torch.zeros(1, 1 + self.grid**2, width)) if learned else None
        self.relative = None if learned else RelativeBias(self.grid, max_text_length, heads, layers)
        self.modality = nn.Embedding(2, width)  # text, image
        shared: dict[str, Any] = {"shares": attention == "shared", "norm_eps": norm_eps}
        self.first_vl = layers - vl_layers
        self.blocks = nn.ModuleList(
            MomeLayer(
                width,
                heads,
                has_both=i >= self.first_vl,
                drop_path=drop_path * i / max(1, layers - 1),
                layer_scale=layer_scale,
                **shared,
            )
            for i in range(layers)
        )
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.code_head = nn.Linear(width, num_codes)
        self.word_head = WordHead(width, vocab_size)
        self.pooler, self.match_head = Pooler(width), nn.Linear(width, 2)
        self.image_proj, self.text_proj, self.image_vl_proj, self.text_vl_proj = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )
        init_vit(self, init_std)
        for token in (self.class_token, self.mask_token, self.positions):
            if token is not None:
                nn.init.trunc_normal_(token, std=init_std)
        self.temp, self.vl_temp = (nn.Parameter(torch.tensor(0.07)) for _ in range(2))
        self.codebook = None if codebook is None else build(codebook, "vlpipe.models.codebooks")

    def _check(self) -> None:
        """Raises ValueError for parameters that no VLMo has."""
        c = self.config
        if c.stage not in HAS or c.attention not in ("shared", "separate") or c.image_size % c.patch_size:
            raise ValueError(
                "model: stage is images, texts or pairs, attention shared or separate, and image_size a multiple of "
                f"patch_size, got {c.stage!r}, {c.attention!r}, {c.image_size} and {c.patch_size}"
            )
        if not 0 < c.vl_layers < c.layers or c.position not in ("learned", "relative"):
            raise ValueError(
                "model: vl_layers must be from 1 to layers - 1, and position learned or relative, got "
                f"{c.vl_layers} of {c.layers}, {c.position!r}"
            )

    def streams(self) -> dict[str, dict[str, Any]]:
        found, stage = super().streams(), self.config.stage
        if stage == "texts":
            return {"text": found["text"]}
        if stage == "pairs":
            return found
        if self.codebook is not None:
            second = self.codebook.patch_size * self.grid
            return {"image": {**found["image"], "use": "two_sizes:TwoSizes", "second_size": second}}
        codes = {"num_codes": self.config.num_codes, "num_places": self.grid**2}
        return {"image": {**found["image"], "use": "image_codes:ImageWithCodes", **codes}}

    def lacks(self, capability: type) -> bool:
        return capability in (*CODES, *WORDS, *PAIRS) and capability not in HAS[self.config.stage]

    def image_feat(self, out: Outputs) -> Tensor:
        return F.normalize(self.image_proj(out.image_tokens[:, 0]).float(), dim=-1)

    def text_feat(self, out: Outputs) -> Tensor:
        return F.normalize(self.text_proj(out.text_tokens[:, 0]).float(), dim=-1)

    def image_vl_feat(self, out: Outputs) -> Tensor:
        """(B, width), unit norm: of the image alone, by the experts of both modalities in the upper layers."""
        return F.normalize(self.image_vl_proj(self._upper(BOTH, *out.image_lower)[:, 0]).float(), dim=-1)

    def text_vl_feat(self, out: Outputs) -> Tensor:
        x, bias = out.text_lower
        hidden = self._upper(BOTH, x, bias, out.stream("text").mask)
        return F.normalize(self.text_vl_proj(hidden[:, 0]).float(), dim=-1)

    def fused(self, out: Outputs) -> dict[str, Tensor]:
        """Hidden states of the words (B, L, width) and of class token and patches (B, 1 + N, width) of pairs."""
        (image, image_rows), (text, text_rows) = (
            out.unpaired(f"{name}_embeds", name) for name in (IMAGE, TEXT)
        )
        image = image if image_rows is None else image[image_rows]
        text = text if text_rows is None else text[text_rows]
        mask = out.stream("text").mask
        assert mask is not None
        keys = torch.cat([mask, mask.new_ones(image.shape[:2])], dim=1)
        parts = [(TEXT, text.shape[1]), (IMAGE, image.shape[1])]
        bias = None if self.relative is None else self.relative(text.shape[1], has_image=True)
        x = self._run(torch.cat([text, image], dim=1), parts, keys, bias, 0, self.first_vl)
        x = self._upper(BOTH, x, bias, keys)
        return {"text": x[:, : text.shape[1]], "image": x[:, text.shape[1] :]}

    def match(self, out: Outputs) -> Tensor:
        return self.match_head(self.pooler(out.fused["text"]))

    def word_hidden(self, out: Outputs) -> Tensor:
        return out.fused["text"] if self.config.stage == "pairs" else out.text_tokens

    def predict_words(self, hidden: Tensor) -> Tensor:
        return self.word_head(hidden)

    def code_hidden(self, out: Outputs) -> Tensor:
        """(B, N, width): the patches."""
        return out.image_tokens[:, 1:]

    def predict_codes(self, hidden: Tensor) -> Tensor:
        return self.code_head(hidden)

    def image_codes(self, out: Outputs) -> Tensor:
        """(B, N) int64: of the column, or the codebook's."""
        extra = out.stream("image").extra
        return extra["codes"] if self.codebook is None else self.codebook(extra["second"])

    @torch.no_grad()
    def constrain(self) -> None:
        self.temp.clamp_(min=MIN_TEMP)
        self.vl_temp.clamp_(min=MIN_TEMP)
