"""LLaVA: a projector between a frozen image encoder and a chat model, trained on conversations about images.

Liu et al. 2023, https://arxiv.org/abs/2304.08485; its projector of two layers: https://arxiv.org/abs/2310.03744; images of
any shape: https://llava-vl.github.io/blog/2024-01-30-llava-next/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlpipe.models.blocks.frozen.language_model import LanguageModel
from vlpipe.models.blocks.frozen.lora import adapt, with_adapters
from vlpipe.models.blocks.frozen.vision_tower import VisionTower
from vlpipe.models.interface.capabilities import TextRules
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs


class Llava(Model):
    """Defaults are those of LLaVA-1.5: CLIP's ViT-L/14 at 336 pixels, of which the patches after the last layer but one are
    read. llm: transformers' config of the language model (a decoder), with its `model_type`; its weights come through
    `init_parts`, those of the image encoder, too. Freeze `vision.*`, and in the first stage `llm.*`.

    An image stands before the text's token at position `image_at`, which the maker of conversations writes; without that,
    after the start token and the ids `before_image`, as in texts that it writes. skip: how many of the encoder's last
    layers are not read. grids: rows and columns of tiles that an image may be cut into, such as [[1, 2], [2, 1], [2, 2]],
    beside the whole image (LLaVA-NeXT); None: the whole image alone. lora: of peft's LoraConfig, adapters of the language
    model; start from a trained model with `init`. image_token: the id that stands for an image in transformers; None for
    the first that the tokenizer has no token for.
    """

    STREAMS = {"image": "image:Image", "text": "conversation:Conversation"}  # noqa: RUF012
    ENCODINGS = {"image": ("image_tokens",)}  # noqa: RUF012
    FORMATS = ("llava", "llava_next")

    def __init__(
        self,
        *,
        llm: Mapping[str, Any],
        vocab_size: int,
        start: int,
        end: int,
        image_size: int = 336,
        patch_size: int = 14,
        vision_width: int = 1024,
        vision_layers: int = 24,
        vision_heads: int = 16,
        vision_mlp: int | None = None,
        vision_norm_eps: float = 1e-5,
        activation: str = "quick_gelu",
        skip: int = 1,
        grids: Sequence[Sequence[int]] | None = None,
        before_image: Sequence[int] = (),
        max_text_length: int = 2048,
        lora: Mapping[str, Any] | None = None,
        image_token: int | None = None,
    ) -> None:
        super().__init__()
        self.vision = VisionTower(
            image_size,
            patch_size,
            vision_width,
            vision_layers,
            vision_heads,
            clip=True,
            mlp_width=vision_mlp,
            activation=activation,
            norm_eps=vision_norm_eps,
        )
        self.llm = LanguageModel(llm, vocab_size, end)
        if self.llm.encodes:
            raise ValueError(f"model: LLaVA's language model is a decoder, got {llm['model_type']}")
        width = self.llm.width
        self.projector = nn.Sequential(nn.Linear(vision_width, width), nn.GELU(), nn.Linear(width, width))
        self.newline = nn.Parameter(torch.randn(width) * width**-0.5) if grids else None
        if lora is not None:
            adapt(self.llm, lora)

    def streams(self) -> dict[str, dict[str, Any]]:
        found, c = super().streams(), self.config
        if c.grids:
            found["image"] |= {"use": "tiles:Tiles", "patch_size": c.patch_size, "grids": c.grids}
        return found

    def image_tokens(self, out: Outputs) -> Tensor:
        """(B, P, width of the language model), of which padding is on the right; see `image_counts`."""
        image = out.stream("image")
        if image.data.ndim == 4:
            tokens: Tensor = self._features(image.data)
            return tokens
        assert image.mask is not None
        assert self.newline is not None
        tiles = self._features(image.data.flatten(0, 1)[image.chosen("mask", image.mask)])  # (tiles, N, W)
        table = torch.cat([tiles.flatten(0, 1), self.newline[None].to(tiles.dtype)])
        first = (image.mask.sum(1).cumsum(0) - image.mask.sum(1)) * tiles.shape[1]  # of a row's features
        order = image.extra["order"]  # 0: none, 1: the end of a line, from 2: the row's features
        return table[torch.where(order >= 2, order - 2 + first[:, None], len(table) - 1)]

    def _features(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.projector(self.vision(pixels, self.config.skip)[:, 1:])
        return found

    def image_counts(self, out: Outputs) -> Tensor | None:
        """(B,): how many tokens each image has; None if all have the same number."""
        extra = out.stream("image").extra if "image" in out.batch.streams else {}
        return (extra["order"] > 0).sum(1) if "order" in extra else None

    def decoder_hidden(self, out: Outputs) -> Tensor:
        text, (image, rows) = out.stream("text"), out.unpaired("image_tokens", "image")
        image, counts = image if rows is None else image[rows], self.image_counts(out)
        usual, at = 1 + len(self.config.before_image), text.extra.get("image_at")
        if counts is None and at is None:
            return self.llm.hidden(text.data, image, usual)
        every = text.data.new_full((len(text),), 0)
        counts = every + image.shape[1] if counts is None else counts
        return self.llm.hidden_between(text.data, image, counts, every + usual if at is None else at)

    def predict(self, hidden: Tensor) -> Tensor:
        return self.llm.predict(hidden)

    @property
    def text_rules(self) -> TextRules:
        c = self.config
        never = self.llm.never_written(c.start, c.end, c.vocab_size)
        return TextRules(c.start, c.end, never, c.max_text_length)

    def start_text(self, images: Tensor, room: int, repeats: int = 1) -> Any:
        return self.llm.start(images, repeats, at=1 + len(self.config.before_image))

    def step_text(self, ids: Tensor, cache: Any) -> Tensor:
        before = self.config.before_image
        if cache.image is None or not before:
            return self.llm.step(ids, cache)
        given = torch.tensor(list(before), device=ids.device).expand(len(ids), -1)
        found = self.llm.step(torch.cat([ids[:, :1], given, ids[:, 1:]], 1), cache)
        return found[:, len(before) :]  # that of the last id before the image stands for the start token's

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        state = self.vision.fitted(state, "vision.")
        return state if self.config.lora is None else with_adapters(state, self)
