"""Sizes and token ids of a BLIP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlpipe.models.tokenizer import Tokenizer

TOKENS = ("pad", "cls", "sep", "dec", "enc", "unk", "mask")  # fields of BlipConfig that a Tokenizer has too
PARTS = {  # parts -> (text encoder, text decoder, cross-attention)
    "all": (True, True, True),
    "captioner": (False, True, True),
    "retrieval": (True, False, True),
    "unimodal": (True, False, False),
}


@dataclass(frozen=True, kw_only=True)
class BlipConfig:
    """Sizes and token ids. Defaults of the sizes are BLIP ViT-B/16's; `parts` says which of the three
    functionalities exist.
    """

    vocab_size: int
    pad: int
    cls: int
    sep: int
    dec: int
    enc: int
    unk: int | None = None  # None: not known, as in folders of older versions without a tokenizer
    mask: int | None = None
    image_size: int = 224
    patch_size: int = 16
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    vision: dict[str, Any] | None = (
        None  # another image encoder, such as {use: "mobilenet_v2:MobileNetV2Tokens"}
    )
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    max_text_length: int = 512
    embed_dim: int = 256
    dropout: float = 0.1  # text only, attention weights included
    drop_path: float = 0.0  # vision; BLIP: 0 for ViT-B, 0.1 for ViT-L
    position: str = "learned"  # of patches: learned | sincos
    label_smoothing: float = 0.1  # of LM
    vision_norm_eps: float = 1e-6
    init_std: float = 0.02  # of weight matrices; a model 100 wide wants 0.08 (at 0.02 it hardly learns)
    parts: str = "all"  # all | captioner | retrieval | unimodal

    def __post_init__(self) -> None:
        for what, one_of in (("position", ("learned", "sincos")), ("parts", tuple(PARTS))):
            if getattr(self, what) not in one_of:
                raise ValueError(f"{what} must be one of {', '.join(one_of)}, got {getattr(self, what)!r}")
        for what, by in (
            ("vision_width", "vision_heads"),
            ("text_width", "text_heads"),
            ("image_size", "patch_size"),
        ):
            if getattr(self, by) < 1 or getattr(self, what) % getattr(self, by):
                raise ValueError(
                    f"{what} must be a multiple of {by} = {getattr(self, by)}, got {getattr(self, what)}"
                )

    @property
    def never(self) -> list[int]:
        """Ids of the tokens that are never generated: padding, [CLS], [DEC], [ENC], [UNK] and [MASK].

        [UNK] is a target in training where a text has a character that the vocabulary lacks, but it is no word.
        """
        ids = (self.pad, self.cls, self.dec, self.enc, self.unk, self.mask)
        return sorted({i for i in ids if i is not None})


def unknown_and_mask(folder: Path, fields: Mapping[str, Any]) -> dict[str, int]:
    """Ids `unk` and `mask` for a config that lacks them: those of the tokenizer in the folder, if it has one."""
    if fields.get("unk") is not None and fields.get("mask") is not None:
        return {}
    try:
        tokenizer = Tokenizer.load(folder)
    except ValueError:  # no tokenizer, or not one that this model could be used with
        return {}
    return (
        {"unk": tokenizer.unk, "mask": tokenizer.mask} if tokenizer.vocab_size == fields["vocab_size"] else {}
    )
